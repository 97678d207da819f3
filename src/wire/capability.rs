//! What a server can do in addition to the baseline.

use serde::{Deserialize, Serialize};

/// One thing that a server can do in addition to the baseline. It is used only if the server lists it in the
/// member `capabilities` of `/sync-status`, or if the site's configuration forces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// `POST /bulk/{path}`.
    Bulk,
    /// `DELETE /{path}/{key}`.
    Delete,
    /// `POST /changes`.
    Changes,
    /// `PUT /schema/{path}`.
    Schema,
    /// Resumable uploads at `/files`.
    Tus,
    /// `HEAD /upload/{directory}?hash=…`.
    ContentHash,
}

impl Capability {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::Bulk,
        Self::Delete,
        Self::Changes,
        Self::Schema,
        Self::Tus,
        Self::ContentHash,
    ];

    /// Their names, in the same order.
    pub const NAMES: [&str; 6] = ["bulk", "delete", "changes", "schema", "tus", "content-hash"];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The capability with this name; `None` if there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|capability| capability.name() == name)
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Capabilities {
    /// `POST /bulk/{path}`.
    pub bulk: bool,
    /// `DELETE /{path}/{key}`.
    pub delete: bool,
    /// `POST /changes`.
    pub changes: bool,
    /// `PUT /schema/{path}`.
    pub schema: bool,
    /// Resumable uploads at `/files`.
    pub tus: bool,
    /// `HEAD /upload/{directory}?hash=…`.
    pub content_hash: bool,
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
            .into_iter()
            .filter(|&capability| self.has(capability))
            .map(Capability::name)
            .collect()
    }

    fn flag(&mut self, capability: Capability) -> &mut bool {
        match capability {
            Capability::Bulk => &mut self.bulk,
            Capability::Delete => &mut self.delete,
            Capability::Changes => &mut self.changes,
            Capability::Schema => &mut self.schema,
            Capability::Tus => &mut self.tus,
            Capability::ContentHash => &mut self.content_hash,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_has_its_name() {
        for (capability, name) in Capability::ALL.into_iter().zip(Capability::NAMES) {
            assert_eq!(serde_json::to_value(capability).unwrap(), name);
            assert_eq!(Capability::from_name(name), Some(capability));
            let (only, unknown) = Capabilities::from_names([name, "teleport"]);
            assert_eq!((only.names(), unknown), (vec![name], vec!["teleport"]));
            assert!(only.has(capability));
        }
        let (all, _) = Capabilities::from_names(Capability::NAMES);
        assert_eq!(all.names(), Capability::NAMES);
    }
}
