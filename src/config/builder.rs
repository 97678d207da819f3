//! Settings from a program's own values, for programs that embed the replicator.

use std::path::Path;

use super::{Settings, layers};
use crate::catalogue::Catalogue;
use crate::error::Result;

/// Collects settings. A setting that is not set has its default. No file and no environment is read.
///
/// ```
/// use cloud_sync::Settings;
///
/// let settings = Settings::builder()
///     .database_url("postgresql://replicator@localhost/school")
///     .cloud("https://cloud.example/api", "the-key-of-the-site")
///     .media_root("/srv/media")
///     .set("delivery.batch_rows", "500")
///     .build()?;
/// assert_eq!(settings.delivery.batch_rows, 500);
/// # Ok::<(), cloud_sync::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct SettingsBuilder {
    values: Vec<(String, String)>,
    catalogue: Option<Catalogue>,
}

impl SettingsBuilder {
    /// The site's database: `source.database_url`.
    #[must_use]
    pub fn database_url(self, url: &str) -> Self {
        self.set("source.database_url", url)
    }

    /// The cloud's base URL and the site's key: `cloud.url` and `cloud.key`.
    #[must_use]
    pub fn cloud(self, url: &str, key: &str) -> Self {
        self.set("cloud.url", url).set("cloud.key", key)
    }

    /// The folder that file columns are relative to: `media.root`.
    #[must_use]
    pub fn media_root(self, folder: impl AsRef<Path>) -> Self {
        self.set("media.root", &folder.as_ref().to_string_lossy())
    }

    /// The folder of the checkpoint store: `store.path`.
    #[must_use]
    pub fn store(self, folder: impl AsRef<Path>) -> Self {
        self.set("store.path", &folder.as_ref().to_string_lossy())
    }

    /// The catalogue to replicate; if it is not set, the built-in one of a college.
    #[must_use]
    pub fn catalogue(mut self, catalogue: Catalogue) -> Self {
        self.catalogue = Some(catalogue);
        self
    }

    /// Sets any setting by its name, with its value as text. A later value overrides an earlier one.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.values.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A configuration error that names the setting, and what its value must look like.
    pub fn build(self) -> Result<Settings> {
        layers::of_values(&self.values, self.catalogue)
    }
}
