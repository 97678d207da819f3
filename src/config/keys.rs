//! The one table of settings: name, default, environment variables, shape and help of each. A new setting is
//! a row here, a field in `config/mod.rs`, and the line in `config/layers.rs` that reads it.

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueShape {
    /// Any text.
    Text,
    /// A path of a file or a folder.
    Path,
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds.
    Count {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A time span such as `30s`, within bounds in milliseconds.
    Duration {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// `auto`, or a time span as above.
    DurationOrAuto {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A number of bytes such as `8MiB`, within bounds.
    Size {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Limits of bandwidth by days and times.
    Bandwidth,
    /// Bytes of a day and of a month.
    Budget,
    /// An IP address and a port.
    Address,
    /// An `http://` or `https://` URL without credentials.
    HttpUrl,
    /// A `postgresql://` URL.
    DatabaseUrl,
    /// A word that is safe in an HTTP header: an API key, a token, an identifier.
    Word,
    /// `auto`, or a list of capabilities.
    Capabilities,
    /// A driver for file uploads.
    Driver,
    /// Plain words such as `daily at 02:00`, a cron expression, or `off`.
    Cron,
    /// The name of a time zone.
    TimeZone,
    /// Each site's API keys.
    SiteKeys,
    /// The kind of server that the cloud is.
    Profile,
    /// A path below the cloud's URL.
    UrlPath,
    /// Further fields of a form, each with its value.
    FormFields,
    /// Patterns of tables' names.
    TablePatterns,
    /// An `http://` or `https://` URL of a webhook.
    WebhookUrl,
    /// An `smtp://` or `smtps://` URL.
    SmtpUrl,
}

/// One setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettingKey {
    /// Its section and its name in the section: `cloud.url`.
    pub name: &'static str,
    /// The value if no layer sets it; `None` means unset.
    pub default: Option<&'static str>,
    /// The environment variable of the old system for it.
    pub legacy: Option<&'static str>,
    /// Whether its value is never shown.
    pub secret: bool,
    /// What a value must look like.
    pub shape: ValueShape,
    /// The help, in one line.
    pub help: &'static str,
}

impl SettingKey {
    /// The variable that sets it: `CLOUD_SYNC_<SECTION>_<KEY>`.
    pub fn variable(&self) -> String {
        format!("CLOUD_SYNC_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    /// Whether a running program can take a new value. It cannot for its database, its store, its ports, and
    /// all settings of the receiver but the keys.
    pub fn reloads(&self) -> bool {
        match self.section() {
            "source" | "store" | "catalogue" => false,
            "control" => !matches!(self.name, "control.listen" | "control.names"),
            "receiver" => self.name == "receiver.keys",
            _ => true,
        }
    }

    /// Its section: `cloud`.
    pub fn section(&self) -> &'static str {
        self.name
            .split_once('.')
            .map_or(self.name, |(section, _)| section)
    }

    /// Its name within the section: `url`.
    pub fn leaf(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, leaf)| leaf)
    }
}

const fn key(
    name: &'static str,
    default: Option<&'static str>,
    shape: ValueShape,
    help: &'static str,
) -> SettingKey {
    SettingKey {
        name,
        default,
        legacy: None,
        secret: false,
        shape,
        help,
    }
}

const fn secret(name: &'static str, shape: ValueShape, help: &'static str) -> SettingKey {
    let mut key = key(name, None, shape, help);
    key.secret = true;
    key
}

const fn legacy(mut key: SettingKey, variable: &'static str) -> SettingKey {
    key.legacy = Some(variable);
    key
}

const HOUR: u64 = 3_600_000;

/// All settings, in the order in which they are shown. `[[entity]]` is apart: see
/// [`crate::catalogue::Entity`].
pub const KEYS: &[SettingKey] = &[
    legacy(
        secret(
            "source.database_url",
            ValueShape::DatabaseUrl,
            "the site's database, postgresql://user:password@host/database",
        ),
        "DATABASE_URL",
    ),
    key(
        "source.source_id",
        None,
        ValueShape::Word,
        "the cloud's name for this database; init generates one if it is not set",
    ),
    key(
        "source.outbox_limit",
        None,
        ValueShape::Size {
            min: 1 << 20,
            max: 1 << 50,
        },
        "the size of the outbox at which its disk counts as full, for the forecast; if it is not set, the \
         free space of the disk counts",
    ),
    key(
        "catalogue.tables",
        None,
        ValueShape::TablePatterns,
        "patterns of tables that are entities without an [[entity]] of their own, such as \"public.*\" and \
         \"!public.audit_*\"; columns whose names look private stay on the site then",
    ),
    key(
        "media.root",
        Some("storage/app/public"),
        ValueShape::Path,
        "the folder that file columns are relative to",
    ),
    key(
        "media.strip_prefix",
        None,
        ValueShape::Text,
        "what is taken off the beginning of the paths in rows, such as /storage/; several are separated by commas",
    ),
    key(
        "media.settle",
        Some("2s"),
        ValueShape::Duration { min: 0, max: HOUR },
        "how long a file must be unchanged before it counts as finished",
    ),
    key(
        "media.rescan",
        Some("auto"),
        ValueShape::DurationOrAuto {
            min: 1_000,
            max: 24 * HOUR,
        },
        "how often each file that a row names is compared with its record; auto: every minute for up to 10,000 \
         files, less often for more, every 10 minutes at least",
    ),
    key(
        "store.path",
        Some("var/cloud-sync"),
        ValueShape::Path,
        "the folder of the local checkpoint store",
    ),
    legacy(
        key(
            "cloud.url",
            None,
            ValueShape::HttpUrl,
            "the cloud API's base URL, as in https://cloud.example/api",
        ),
        "CLOUD_API_URL",
    ),
    legacy(
        secret(
            "cloud.key",
            ValueShape::Word,
            "the API key that the cloud gave this site",
        ),
        "CLOUD_API_KEY",
    ),
    key(
        "cloud.profile",
        Some("contract"),
        ValueShape::Profile,
        "the kind of server: contract, or laravel for the server of the old script",
    ),
    key(
        "cloud.prefix",
        None,
        ValueShape::UrlPath,
        "a path below cloud.url that all calls lie below, as in sync",
    ),
    key(
        "cloud.status_path",
        Some("sync-status"),
        ValueShape::UrlPath,
        "the path of the status call; any call that returns JSON for GET will do",
    ),
    key(
        "cloud.timeout",
        Some("30s"),
        ValueShape::Duration { min: 1, max: HOUR },
        "how long one request may take without progress",
    ),
    key(
        "cloud.capabilities",
        Some("auto"),
        ValueShape::Capabilities,
        "auto uses what the server lists; a list here replaces it",
    ),
    key(
        "cloud.delete_moved",
        Some("true"),
        ValueShape::Bool,
        "whether a row that moves to another entity of its table is first deleted under its old path; set \
         false if the new path replaces it",
    ),
    key(
        "cloud.allow_insecure_http",
        Some("false"),
        ValueShape::Bool,
        "whether an http:// URL that is not loopback is allowed: key and rows go without encryption",
    ),
    key(
        "cloud.ca_file",
        None,
        ValueShape::Path,
        "a PEM file with further certificate authorities to trust",
    ),
    key(
        "delivery.batch_rows",
        Some("5000"),
        ValueShape::Count { min: 1, max: 100_000 },
        "the most rows of a batch",
    ),
    key(
        "delivery.batch_bytes",
        Some("4MiB"),
        ValueShape::Size {
            min: 1 << 10,
            max: 256 << 20,
        },
        "the most bytes of row text of a batch",
    ),
    key(
        "delivery.in_flight",
        Some("16"),
        ValueShape::Count { min: 1, max: 256 },
        "the most requests at a time",
    ),
    key(
        "delivery.compress",
        None,
        ValueShape::Bool,
        "whether the bodies of changes are compressed; if it is not set, they are unless the cloud is on \
         this machine",
    ),
    legacy(
        key(
            "files.driver",
            Some("api"),
            ValueShape::Driver,
            "how files go to the cloud: api, through the cloud's own API; s3, gcs or azure, to an object storage, with \
             the credentials of the environment; file, to a folder such as a mounted share",
        ),
        "CLOUD_STORAGE_DRIVER",
    ),
    legacy(
        key(
            "files.bucket",
            None,
            ValueShape::Text,
            "the object storage's bucket or container, or the folder; the api driver needs none",
        ),
        "CLOUD_STORAGE_BUCKET",
    ),
    key(
        "files.prefix",
        None,
        ValueShape::UrlPath,
        "what each key in the bucket begins with; after it come the source, the directory and the content's hash",
    ),
    key(
        "files.endpoint",
        None,
        ValueShape::HttpUrl,
        "the object storage's server, where it is not the provider's own: https://minio.example:9000",
    ),
    key(
        "files.region",
        None,
        ValueShape::Word,
        "the bucket's region; if it is not set, the environment's",
    ),
    key(
        "files.access_key",
        None,
        ValueShape::Word,
        "the access key of S3, or the account of Azure; if it is not set, the environment's (AWS_ACCESS_KEY_ID, \
         AZURE_STORAGE_ACCOUNT_NAME) or the machine's own",
    ),
    secret(
        "files.secret_key",
        ValueShape::Word,
        "the secret that belongs to files.access_key",
    ),
    key(
        "files.public_url",
        None,
        ValueShape::HttpUrl,
        "what the URLs of files in the bucket begin with: https://files.example; if it is not set, rows get \
         s3://bucket/key and the like",
    ),
    key(
        "files.url_valid",
        None,
        ValueShape::Duration {
            min: HOUR,
            max: 7 * 24 * HOUR,
        },
        "how long the URL of a file in the bucket holds, such as 7d: the storage signs it, and it is renewed in the \
         rows before it ends. If it is not set, URLs are not signed",
    ),
    key(
        "files.field",
        Some("file"),
        ValueShape::Word,
        "the name of the part with the file in an upload's form",
    ),
    key(
        "files.fields",
        None,
        ValueShape::FormFields,
        "further fields of an upload's form: [files.fields] visibility = \"public\", or \
         visibility=public;folder=slips",
    ),
    key(
        "files.bandwidth",
        Some("unlimited"),
        ValueShape::Bandwidth,
        "how fast files may go, by the local time: unlimited, 1MiB/s, off, or \
         \"mon-fri 07:00-18:00 1MiB/s; else unlimited\"; what rows send counts, and rows never wait",
    ),
    key(
        "files.budget",
        Some("unlimited"),
        ValueShape::Budget,
        "how many bytes may leave on a day and in a month, by the local date: unlimited, 2GiB/day, or \
         \"2GiB/day; 40GiB/month\"; what rows send counts, and rows never wait",
    ),
    key(
        "files.upload_videos",
        Some("true"),
        ValueShape::Bool,
        "whether videos are uploaded; their rows always are",
    ),
    key(
        "control.listen",
        Some("127.0.0.1:8787"),
        ValueShape::Address,
        "where the operator API and the page listen",
    ),
    key(
        "control.names",
        None,
        ValueShape::Text,
        "further host names by which browsers reach the page, separated by commas, as in sync.school.example \
         behind a proxy that adds TLS",
    ),
    key(
        "control.lag_limit",
        Some("15m"),
        ValueShape::Duration {
            min: 1_000,
            max: 30 * 24 * HOUR,
        },
        "/healthz fails if the oldest change that waits is older",
    ),
    secret(
        "control.token",
        ValueShape::Word,
        "the operator API's bearer token; if it is not set, one is generated in the store's folder",
    ),
    key(
        "schedule.sync",
        Some("0 * * * *"),
        ValueShape::Cron,
        "when a sync runs: hourly, daily at 02:00, every 6 hours, weekdays at 18:30, a cron expression, or off; one \
         that was missed is made up for once",
    ),
    key(
        "schedule.time_zone",
        None,
        ValueShape::TimeZone,
        "the time zone of the schedule, as in Europe/Berlin; if it is not set, the machine's",
    ),
    key(
        "schedule.jitter",
        Some("0s"),
        ValueShape::Duration { min: 0, max: HOUR },
        "how much later than its time a sync may begin: each start of the program draws a delay up to it, so that many \
         sites do not come at once",
    ),
    secret(
        "alerts.webhook",
        ValueShape::WebhookUrl,
        "the URL that gets each alert as JSON by POST; its field text is what chat programs show",
    ),
    key(
        "alerts.email_to",
        None,
        ValueShape::Text,
        "the e-mail addresses that get each alert, separated by commas",
    ),
    key(
        "alerts.email_from",
        None,
        ValueShape::Text,
        "the sender of these e-mails, as in cloud-sync <sync@school.example>",
    ),
    secret(
        "alerts.smtp_url",
        ValueShape::SmtpUrl,
        "the mail server: smtps://user:password@mail.example, or smtp://user:password@mail.example:587?tls=required",
    ),
    key(
        "alerts.hold",
        Some("2m"),
        ValueShape::Duration { min: 0, max: HOUR },
        "how long a problem must last before it is told, and be gone before its end is; the disk's problem five \
         times as long",
    ),
    key(
        "receiver.listen",
        Some("127.0.0.1:8080"),
        ValueShape::Address,
        "where the reference cloud server listens",
    ),
    secret(
        "receiver.database_url",
        ValueShape::DatabaseUrl,
        "the cloud's own database, postgresql://user:password@host/database",
    ),
    key(
        "receiver.files",
        Some("var/cloud-files"),
        ValueShape::Path,
        "the folder of files that sites uploaded",
    ),
    key(
        "receiver.public_url",
        None,
        ValueShape::HttpUrl,
        "the base of the URLs of uploaded files; if it is not set, the address of the request",
    ),
    key(
        "receiver.url_valid",
        None,
        ValueShape::Duration {
            min: HOUR,
            max: 366 * 24 * HOUR,
        },
        "how long the URL of an uploaded file holds, such as 30d; sites renew it in their rows. If it is not set, \
         whoever has a URL can read its file for ever",
    ),
    key(
        "receiver.history",
        Some("false"),
        ValueShape::Bool,
        "whether each applied change is recorded, for audits",
    ),
    secret(
        "receiver.keys",
        ValueShape::SiteKeys,
        "each site's valid keys: [receiver.keys] college = [\"key\"], or college=key,key;annex=key",
    ),
];

/// The key with this dotted name.
pub fn find(name: &str) -> Option<&'static SettingKey> {
    KEYS.iter().find(|key| key.name == name)
}

/// Returns the candidate that is nearest to `name`, if one is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(candidate, name), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
