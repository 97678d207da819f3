//! What a server can do in addition to the baseline. What our own receiver offers of it is in
//! `receiver/mod.rs`.

use serde::{Deserialize, Serialize};

/// Declares the capabilities: of each its use, its variant, its field and its name on the wire.
macro_rules! capabilities {
    ($($(#[doc = $use:literal])+ $variant:ident $field:ident $name:literal,)+) => {
        /// One thing that a server can do in addition to the baseline. It is used only if the server lists it
        /// in the member `capabilities` of `/sync-status`, or if the site's configuration forces it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Capability {
            $($(#[doc = $use])+ #[serde(rename = $name)] $variant,)+
        }

        impl Capability {
            /// All of them, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($name),+];
        }

        /// A set of capabilities.
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
        pub struct Capabilities {
            $($(#[doc = $use])+ pub $field: bool,)+
        }

        impl Capabilities {
            fn flag(&mut self, capability: Capability) -> &mut bool {
                match capability {
                    $(Capability::$variant => &mut self.$field,)+
                }
            }
        }
    };
}

capabilities! {
    /// `POST /bulk/{path}`.
    Bulk bulk "bulk",
    /// `DELETE /{path}/{key}`.
    Delete delete "delete",
    /// `POST /changes`.
    Changes changes "changes",
    /// `PUT /schema/{path}`.
    Schema schema "schema",
    /// Resumable uploads at `/files`.
    Tus tus "tus",
    /// `HEAD /upload/{directory}?hash=…`.
    ContentHash content_hash "content-hash",
}

impl Capability {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The capability with this name; `None` if there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|capability| capability.name() == name)
    }
}

impl Capabilities {
    /// The capabilities with these names, and the names that are none's.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> (Self, Vec<&'a str>) {
        let mut known = Self::default();
        let mut unknown = Vec::new();
        for name in names {
            match Capability::from_name(name) {
                Some(capability) => *known.flag(capability) = true,
                None => unknown.push(name),
            }
        }
        (known, unknown)
    }

    /// Whether it has this one.
    pub fn has(mut self, capability: Capability) -> bool {
        *self.flag(capability)
    }

    /// Their names on the wire.
    pub fn names(self) -> Vec<&'static str> {
        Capability::ALL
            .iter()
            .copied()
            .filter(|&capability| self.has(capability))
            .map(Capability::name)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_has_its_name() {
        for (capability, name) in Capability::ALL
            .iter()
            .copied()
            .zip(Capability::NAMES.iter().copied())
        {
            assert_eq!(serde_json::to_value(capability).unwrap(), name);
            assert_eq!(Capability::from_name(name), Some(capability));
            let (only, unknown) = Capabilities::from_names([name, "teleport"]);
            assert_eq!((only.names(), unknown), (vec![name], vec!["teleport"]));
            assert!(only.has(capability));
        }
        let (all, _) = Capabilities::from_names(Capability::NAMES.iter().copied());
        assert_eq!(all.names(), Capability::NAMES);
    }
}
