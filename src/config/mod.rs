//! The settings: `cloud-sync.toml` overrides the defaults, the `.env` file and the environment override the
//! file, flags override all.
//!
//! [`keys`] is the one table of settings. [`Settings::load`] checks each layer against it, so that an error
//! about a key or a value names the file and its line, the variable, or the flag. Every value keeps where it
//! came from ([`Loaded::values`]). Secrets are kept as [`SecretString`], and are in no message and in no
//! `Debug` output.
//!
//! A relative path is relative to the working directory.

mod builder;
mod entity;
mod file;
pub mod keys;
mod layers;
mod settings_text;
mod value;

pub(crate) use value::size as parse_size;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;
use secrecy::SecretString;
use url::Url;

use crate::catalogue::Catalogue;
use crate::catalogue::declared::DeclaredCatalogue;
use crate::error::{Error, Result};
use crate::media::{BandwidthPlan, TrafficBudget};

pub use self::builder::SettingsBuilder;
pub use self::layers::{ChangedSettings, EffectiveValue, LoadOptions, Loaded, SettingOrigin};

/// Everything that can be set, typed and checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The site's database.
    pub source: SourceSettings,
    /// The site's media folder.
    pub media: MediaSettings,
    /// The local checkpoint store.
    pub store: StoreSettings,
    /// The site's cloud.
    pub cloud: CloudSettings,
    /// Bounds of a batch and of what is in flight.
    pub delivery: DeliverySettings,
    /// Uploads of media files.
    pub files: FileSettings,
    /// The operator API.
    pub control: ControlSettings,
    /// When a sync is due.
    pub schedule: ScheduleSettings,
    /// Where alerts go.
    pub alerts: AlertSettings,
    /// The reference cloud server.
    pub receiver: ReceiverConfig,
    /// The replicated entities: those of `[[entity]]` and `catalogue.tables`, or the built-in nine. It has no
    /// entity as long as only the site's database can tell which there are: see
    /// [`crate::Replicator::complete_settings`].
    pub catalogue: Catalogue,
    /// What the configuration says of the entities; `None` means the built-in nine.
    pub(crate) declared: Option<DeclaredCatalogue>,
}

/// `[source]`: the site's database.
#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// A `postgresql://` URL.
    pub database_url: Option<SecretString>,
    /// The name by which the cloud knows this database; `None` means the one that `init` generated.
    pub source_id: Option<String>,
    /// The size of the outbox in bytes at which its disk counts as full, for the forecast; `None` means the
    /// free space of the disk.
    pub outbox_limit: Option<u64>,
}

/// `[media]`: the site's media folder.
#[derive(Debug, Clone)]
pub struct MediaSettings {
    /// The folder that file columns are relative to.
    pub root: PathBuf,
    /// What is taken off the beginning of what rows name.
    pub strip_prefix: Vec<String>,
    /// How long a file must be unchanged before it counts as finished.
    pub settle: Duration,
    /// The time between two rescans; `None` if it follows from the number of files.
    pub rescan: Option<Duration>,
}

/// `[store]`: the local checkpoint store.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Its folder.
    pub path: PathBuf,
}

/// `[cloud]`: the site's cloud.
#[derive(Debug, Clone)]
pub struct CloudSettings {
    /// The base URL, without credentials, `http` or `https`.
    pub url: Option<Url>,
    /// The API key.
    pub key: Option<SecretString>,
    /// How long one request may take without progress.
    pub timeout: Duration,
    /// The kind of server that it is.
    pub profile: Profile,
    /// The path below the URL that all calls have in common; empty if there is none.
    pub prefix: String,
    /// The path of the status call.
    pub status_path: String,
    /// Which capabilities of the server are used.
    pub capabilities: CapabilityChoice,
    /// Whether a row that moves to another entity of its table is deleted under the old path first.
    pub delete_moved: bool,
    /// Whether a non-loopback `http://` URL is allowed.
    pub allow_insecure_http: bool,
    /// A PEM file with further certificate authorities to trust.
    pub ca_file: Option<PathBuf>,
}

/// The kind of server that the cloud is. It gives values to settings that no other layer sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A server that keeps the wire contract.
    Contract,
    /// The server of the old script: all calls are below `sync`, the status call is `status`, and it takes
    /// deletes, although it lists no capability.
    Laravel,
}

impl Profile {
    /// The settings that the profile gives, by name.
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Contract => &[],
            Self::Laravel => &[
                ("cloud.prefix", "sync"),
                ("cloud.status_path", "status"),
                ("cloud.capabilities", "delete"),
            ],
        }
    }
}

/// Which capabilities of the server are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CapabilityChoice {
    /// Those that the server lists.
    Auto,
    /// These, whatever the server lists; an empty list means a baseline server.
    Only(Vec<String>),
}

/// `[delivery]`: bounds of a batch and of what is in flight.
#[derive(Debug, Clone)]
pub struct DeliverySettings {
    /// Rows a batch, at most.
    pub batch_rows: usize,
    /// Bytes of row text a batch, at most.
    pub batch_bytes: usize,
    /// Requests at a time, at most.
    pub in_flight: usize,
    /// Whether bodies of changes are compressed; `None` means that they are unless the cloud is on this
    /// machine.
    pub compress: Option<bool>,
}

/// `[files]`: uploads of media files.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// How files go to the cloud.
    pub driver: FileDriver,
    /// The object storage's bucket or container, or the folder; for all drivers but `api`.
    pub bucket: Option<String>,
    /// What each key in it begins with.
    pub prefix: Option<String>,
    /// The object storage's server, where it is not the provider's own.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// The access key of S3, or the account of Azure; if it is not set, the environment's.
    pub access_key: Option<String>,
    /// The secret that belongs to it.
    pub secret_key: Option<SecretString>,
    /// What the URLs of files in it begin with.
    pub public_url: Option<String>,
    /// How long the URL of a file in it holds, which the storage signs then; `None` if URLs are not signed.
    pub url_valid: Option<Duration>,
    /// The name of the part with the file in an upload's form.
    pub field: String,
    /// Further fields of that form, with their values.
    pub fields: Vec<(String, String)>,
    /// How fast files may go.
    pub bandwidth: BandwidthPlan,
    /// How many bytes may leave on a day and in a month.
    pub budget: TrafficBudget,
    /// Whether videos are uploaded; their rows always are.
    pub upload_videos: bool,
}

/// How files go to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileDriver {
    /// Through the cloud's own API.
    Api,
    /// To S3, or a server that speaks like it.
    S3,
    /// To Google Cloud Storage.
    Gcs,
    /// To Azure Blob Storage.
    Azure,
    /// To a folder.
    File,
}

/// `[control]`: the operator API.
#[derive(Debug, Clone)]
pub struct ControlSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Further host names by which browsers reach the page, in lower case.
    pub names: Vec<String>,
    /// `/healthz` fails if the oldest change that waits is older than this.
    pub lag_limit: Duration,
    /// The bearer token; `None` means one that is generated in the store's folder.
    pub token: Option<SecretString>,
}

/// `[schedule]`: when a sync is due.
#[derive(Debug, Clone)]
pub struct ScheduleSettings {
    /// Plain words or a cron expression; `None` means never.
    pub sync: Option<String>,
    /// The schedule's time zone; `None` means the machine's.
    pub time_zone: Option<TimeZone>,
    /// How much later than its time a sync may begin.
    pub jitter: Duration,
}

/// `[alerts]`: where alerts go.
#[derive(Debug, Clone)]
pub struct AlertSettings {
    /// A URL that gets each alert by POST.
    pub webhook: Option<SecretString>,
    /// The e-mails.
    pub email: Option<EmailAlerts>,
    /// How long a problem must last before it is told, and be gone before its end is.
    pub hold: Duration,
}

/// Alerts by e-mail.
#[derive(Debug, Clone)]
pub struct EmailAlerts {
    /// Who gets them.
    pub to: Vec<String>,
    /// Whom they come from.
    pub from: String,
    /// The mail server.
    pub smtp_url: SecretString,
}

/// `[receiver]`: the reference cloud server.
#[derive(Debug, Clone)]
pub struct ReceiverConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its own database, a `postgresql://` URL.
    pub database_url: Option<SecretString>,
    /// The folder of uploaded files.
    pub files: PathBuf,
    /// The base of the URLs that it returns; `None` means the address of the request.
    pub public_url: Option<String>,
    /// How long the URL of an uploaded file holds; `None` means for ever.
    pub url_valid: Option<Duration>,
    /// Each site's valid keys.
    pub keys: BTreeMap<String, Vec<SecretString>>,
    /// Whether superseded versions of rows are kept.
    pub history: bool,
}

impl Settings {
    /// Settings from a program's own values.
    pub fn builder() -> SettingsBuilder {
        SettingsBuilder::default()
    }

    /// Reads and checks all layers.
    ///
    /// # Errors
    /// A configuration error that names the key, where its value is, and what would be right.
    pub fn load(options: LoadOptions) -> Result<Loaded> {
        layers::load(options)
    }

    /// The source's database URL.
    ///
    /// # Errors
    /// A configuration error if it is not set.
    pub fn require_database_url(&self) -> Result<&SecretString> {
        self.source.database_url.as_ref().ok_or_else(|| {
            Error::config("find the source database", "source.database_url is not set").remedy(
                "set it in cloud-sync.toml, or DATABASE_URL in the environment or in .env, to \
                 postgresql://user:password@host/database",
            )
        })
    }

    /// The cloud's base URL and the API key.
    ///
    /// # Errors
    /// A configuration error that names the one that is not set.
    pub fn require_cloud(&self) -> Result<(&Url, &SecretString)> {
        let missing = |key: &str, legacy: &str, like: &str| {
            Error::config("find the cloud", format!("{key} is not set")).remedy(format!(
                "set it in cloud-sync.toml, or {legacy} in the environment or in .env, to {like}"
            ))
        };
        let url = self.cloud.url.as_ref().ok_or_else(|| {
            missing(
                "cloud.url",
                "CLOUD_API_URL",
                "the API's base URL, as in https://cloud.example/api",
            )
        })?;
        let key = self.cloud.key.as_ref().ok_or_else(|| {
            missing(
                "cloud.key",
                "CLOUD_API_KEY",
                "the key that the cloud gave this site",
            )
        })?;
        Ok((url, key))
    }

    /// The receiver's database URL.
    ///
    /// # Errors
    /// A configuration error if it is not set.
    pub fn require_receiver_database_url(&self) -> Result<&SecretString> {
        self.receiver.database_url.as_ref().ok_or_else(|| {
            Error::config("find the receiver's database", "receiver.database_url is not set").remedy(
                "set it in cloud-sync.toml, or CLOUD_SYNC_RECEIVER_DATABASE_URL, to \
                     postgresql://user:password@host/database; it is the cloud's database, not the site's",
            )
        })
    }
}

#[cfg(test)]
mod tests;
