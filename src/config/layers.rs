//! Merges the layers, keeps where each value came from, and makes the typed [`Settings`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::keys::{self, KEYS, SettingKey, nearest};
use super::value::{self, ParsedValue};
use super::{
    AlertSettings, CloudSettings, ControlSettings, DeliverySettings, EmailAlerts, FileSettings,
    MediaSettings, ReceiverConfig, ScheduleSettings, Settings, SourceSettings, StoreSettings, file,
};
use crate::catalogue::declared::DeclaredCatalogue;
use crate::catalogue::{Catalogue, Entity};
use crate::error::{Error, Result};

/// The file that is read if none is named and it exists.
const DEFAULT_FILE: &str = "cloud-sync.toml";

/// The file of the Debian package. It is read if none is named, the working directory has none, and the user
/// may read it.
const SYSTEM_FILE: &str = "/etc/cloud-sync/cloud-sync.toml";

/// Where to read the layers from.
#[derive(Clone)]
pub struct LoadOptions {
    /// The configuration file; `None` means `cloud-sync.toml` in `dir`, if it exists.
    pub config: Option<PathBuf>,
    /// Flags: dotted key and value; later ones override earlier ones.
    pub overrides: Vec<(String, String)>,
    /// The process's environment.
    pub env: BTreeMap<String, String>,
    /// The working directory, with the `.env` file.
    pub dir: PathBuf,
}

impl LoadOptions {
    /// The process's own environment and working directory.
    pub fn of_process(config: Option<PathBuf>, overrides: Vec<(String, String)>) -> Self {
        let is_for_system = || !Path::new(DEFAULT_FILE).exists() && std::fs::File::open(SYSTEM_FILE).is_ok();
        Self {
            config: config.or_else(|| is_for_system().then(|| PathBuf::from(SYSTEM_FILE))),
            overrides,
            env: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            dir: PathBuf::from("."),
        }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingOrigin {
    /// No layer sets it.
    Default,
    /// Only the profile of the cloud's server sets it.
    Profile,
    /// The configuration file, at this line.
    File(PathBuf, usize),
    /// A variable of the `.env` file.
    DotEnv(String),
    /// A variable of the process's environment.
    Environment(String),
    /// A flag.
    Flag,
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile => f.write_str("cloud.profile"),
            Self::File(path, line) => write!(f, "{} line {line}", path.display()),
            Self::DotEnv(name) => write!(f, "{name} in .env"),
            Self::Environment(name) => write!(f, "{name} in the environment"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// One key's effective value and where it came from.
#[derive(Clone)]
pub struct EffectiveValue {
    /// The key.
    pub key: &'static SettingKey,
    /// Where the value came from.
    pub origin: SettingOrigin,
    text: Option<String>,
}

impl EffectiveValue {
    /// The value as text, if it is set and no secret.
    pub fn shown(&self) -> Option<&str> {
        self.text.as_deref().filter(|_| !self.key.secret)
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.text.is_some()
    }

    fn value_error(&self, why: &str) -> Error {
        let subject = match &self.origin {
            SettingOrigin::Default | SettingOrigin::Profile => format!("the default of {}", self.key.name),
            SettingOrigin::File(path, line) => {
                format!("{} in {}, line {line}", self.key.name, path.display())
            }
            SettingOrigin::DotEnv(name) | SettingOrigin::Environment(name)
                if *name == self.key.variable() =>
            {
                self.origin.to_string()
            }
            SettingOrigin::DotEnv(_) | SettingOrigin::Environment(_) => {
                format!("{} ({})", self.origin, self.key.name)
            }
            SettingOrigin::Flag => format!("{} of the command line", self.key.name),
        };
        Error::config(format!("use {subject}"), "its value does not fit").remedy(format!("it {why}"))
    }
}

impl fmt::Debug for EffectiveValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value")
            .field("key", &self.key.name)
            .field("shown", &self.shown())
            .field("origin", &self.origin)
            .finish()
    }
}

/// The settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The typed settings.
    pub settings: Settings,
    /// Every key's effective value, in the table's order.
    pub values: Vec<EffectiveValue>,
    /// The configuration file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// Whether the file lists its own entities.
    pub own_catalogue: bool,
    /// What is odd but no error: variables that look like settings and are none, and keys by their old names.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// The names of the settings that differ from `before`: those that a running program can take, and those
    /// that need a restart.
    pub fn changes(&self, before: &Self) -> ChangedSettings {
        let mut changes = ChangedSettings::default();
        for (now, then) in self.values.iter().zip(&before.values) {
            if now.text == then.text {
                continue;
            }
            if now.key.reloads() {
                changes.taken.push(now.key.name);
            } else {
                changes.restart.push(now.key.name);
            }
        }
        if self.settings.declared != before.settings.declared {
            changes.restart.push("[[entity]]");
        }
        changes
    }

    /// The settings of a running program after a reload: the new values of the settings that it can take, and
    /// the values of `before` for all others.
    pub fn applied_over(self, before: &Self) -> Self {
        let mut settings = before.settings.clone();
        settings.media = self.settings.media;
        settings.cloud = self.settings.cloud;
        settings.delivery = self.settings.delivery;
        settings.files = self.settings.files;
        settings.schedule = self.settings.schedule;
        settings.control.token = self.settings.control.token;
        settings.control.lag_limit = self.settings.control.lag_limit;
        settings.alerts = self.settings.alerts;
        settings.receiver.keys = self.settings.receiver.keys;
        let values = self.values.into_iter().zip(&before.values);
        Self {
            settings,
            values: values
                .map(|(now, then)| if now.key.reloads() { now } else { then.clone() })
                .collect(),
            ..before.clone()
        }
    }
}

/// The names of settings that differ.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangedSettings {
    /// The settings that a running program can take.
    pub taken: Vec<&'static str>,
    /// The settings that need a restart.
    pub restart: Vec<&'static str>,
}

pub(super) fn load(options: LoadOptions) -> Result<Loaded> {
    let mut layers = Layers::of_defaults();
    let (path, entities) = layers.add_file(&options)?;
    let dot_env = read_dot_env(&options.dir.join(".env"))?;
    layers.add_variables(&dot_env, SettingOrigin::DotEnv)?;
    layers.add_variables(&options.env, SettingOrigin::Environment)?;
    layers.add_flags(&options.overrides)?;
    layers.add_profile()?;
    layers.check()?;
    let settings = layers.settings(entities)?;
    let own_catalogue = settings.declared.is_some();
    Ok(Loaded {
        settings,
        values: layers.values,
        file: path,
        own_catalogue,
        warnings: layers.warnings,
    })
}

/// The settings of these values alone: no file and no environment.
pub(super) fn of_values(values: &[(String, String)], catalogue: Option<Catalogue>) -> Result<Settings> {
    let mut layers = Layers::of_defaults();
    layers.add_flags(values)?;
    layers.add_profile()?;
    layers.check()?;
    layers.settings(catalogue.map(|catalogue| catalogue.entities().to_vec()))
}

struct Layers {
    values: Vec<EffectiveValue>,
    warnings: Vec<String>,
}

impl Layers {
    fn of_defaults() -> Self {
        let values = KEYS
            .iter()
            .map(|key| EffectiveValue {
                key,
                origin: SettingOrigin::Default,
                text: key.default.map(str::to_owned),
            })
            .collect();
        Self {
            values,
            warnings: Vec::new(),
        }
    }

    /// Checks that each value looks as its setting wants.
    fn check(&self) -> Result<()> {
        for value in &self.values {
            if let Some(text) = &value.text {
                value::check(value.key.shape, text).map_err(|why| value.value_error(&why))?;
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, text: String, origin: SettingOrigin) {
        if let Some(value) = self.values.iter_mut().find(|value| value.key.name == name) {
            value.text = Some(text);
            value.origin = origin;
        }
    }

    fn add_file(&mut self, options: &LoadOptions) -> Result<(Option<PathBuf>, Option<Vec<Entity>>)> {
        let is_named = options.config.is_some();
        let path = options.config.clone().unwrap_or_else(|| {
            if options.dir == Path::new(".") {
                PathBuf::from(DEFAULT_FILE)
            } else {
                options.dir.join(DEFAULT_FILE)
            }
        });
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => {
                return Ok((None, None));
            }
            Err(error) => {
                return Err(
                    Error::config(format!("read {}", path.display()), error.to_string())
                        .remedy("name a readable file with --config"),
                );
            }
        };
        let file = file::parse_settings_file(&path, &text)?;
        self.warnings.extend(file.warnings);
        for (key, text, line) in file.values {
            self.set(key.name, text, SettingOrigin::File(path.clone(), line));
        }
        Ok((Some(path), file.entities))
    }

    /// Adds variables. An empty variable counts as unset. The uniform name overrides the legacy one.
    fn add_variables(
        &mut self,
        variables: &BTreeMap<String, String>,
        origin: impl Fn(String) -> SettingOrigin,
    ) -> Result<()> {
        for key in KEYS {
            let uniform = key.variable();
            let names = [key.legacy, Some(uniform.as_str())];
            for name in names.into_iter().flatten() {
                if let Some(text) = variables.get(name).filter(|text| !text.is_empty()) {
                    self.set(key.name, text.clone(), origin(name.to_owned()));
                }
            }
        }
        for name in variables.keys() {
            self.check_unknown_variable(name, &origin)?;
        }
        Ok(())
    }

    /// A variable whose name is nearly one of ours is an error. Another one in our sections gives only a
    /// warning: platforms add variables with such names.
    fn check_unknown_variable(&mut self, name: &str, origin: impl Fn(String) -> SettingOrigin) -> Result<()> {
        let Some(rest) = name.strip_prefix("CLOUD_SYNC_") else {
            return Ok(());
        };
        let variables: Vec<String> = KEYS.iter().map(SettingKey::variable).collect();
        if variables.iter().any(|variable| variable == name) {
            return Ok(());
        }
        if let Some(meant) = variables
            .iter()
            .find(|variable| strsim::osa_distance(variable, name) <= 2)
        {
            return Err(Error::config(
                format!("use {}", origin(name.to_owned())),
                "there is no such setting",
            )
            .remedy(format!("did you mean {meant}?")));
        }
        let in_our_sections = KEYS
            .iter()
            .any(|key| rest.starts_with(&format!("{}_", key.section().to_ascii_uppercase())));
        if in_our_sections {
            self.warnings.push(format!(
                "{} is no setting and has no effect",
                origin(name.to_owned())
            ));
        }
        Ok(())
    }

    fn add_flags(&mut self, overrides: &[(String, String)]) -> Result<()> {
        for (name, text) in overrides {
            let Some(key) = keys::find(name) else {
                let error = Error::config(
                    format!("use {name} of the command line"),
                    "there is no such setting",
                );
                return Err(match nearest(name, KEYS.iter().map(|key| key.name)) {
                    Some(meant) => error.remedy(format!("did you mean {meant}?")),
                    None => error.remedy("cloud-sync config lists all settings"),
                });
            };
            self.set(key.name, text.clone(), SettingOrigin::Flag);
        }
        Ok(())
    }

    /// Adds the settings of the server's profile, which all other layers override.
    fn add_profile(&mut self) -> Result<()> {
        let profile = self.required("cloud.profile", value::profile)?;
        for (name, text) in profile.settings() {
            if self.value(name)?.origin == SettingOrigin::Default {
                self.set(name, (*text).to_owned(), SettingOrigin::Profile);
            }
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Result<&EffectiveValue> {
        self.values
            .iter()
            .find(|value| value.key.name == name)
            .ok_or_else(|| Error::config(format!("use {name}"), "the table of settings lacks it"))
    }

    fn optional<T>(&self, name: &str, parse: impl Fn(&str) -> ParsedValue<T>) -> Result<Option<T>> {
        let value = self.value(name)?;
        value
            .text
            .as_deref()
            .map(|text| parse(text).map_err(|why| value.value_error(&why)))
            .transpose()
    }

    fn required<T>(&self, name: &str, parse: impl Fn(&str) -> ParsedValue<T>) -> Result<T> {
        self.optional(name, parse)?
            .ok_or_else(|| Error::config(format!("use {name}"), "it is not set"))
    }

    fn secret(&self, name: &str) -> Result<Option<SecretString>> {
        self.optional(name, |text| Ok(SecretString::from(text)))
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        self.required(name, |text| Ok(PathBuf::from(text)))
    }

    fn number(&self, name: &str, parse: impl Fn(&str) -> ParsedValue<u64>) -> Result<usize> {
        self.required(name, |text| {
            usize::try_from(parse(text)?).map_err(|_| "must be a smaller number".to_owned())
        })
    }

    fn settings(&self, entities: Option<Vec<Entity>>) -> Result<Settings> {
        let text = |text: &str| Ok(text.to_owned());
        let tables = self
            .optional("catalogue.tables", value::table_patterns)?
            .unwrap_or_default();
        let declared = (entities.is_some() || !tables.is_empty()).then(|| DeclaredCatalogue {
            entities: entities.unwrap_or_default(),
            tables,
        });
        Ok(Settings {
            source: SourceSettings {
                database_url: self.secret("source.database_url")?,
                source_id: self.optional("source.source_id", text)?,
                outbox_limit: self.optional("source.outbox_limit", value::size)?,
            },
            media: MediaSettings {
                root: self.path("media.root")?,
                strip_prefix: self
                    .optional("media.strip_prefix", value::prefixes)?
                    .unwrap_or_default(),
                settle: self.required("media.settle", value::duration)?,
                rescan: self.required("media.rescan", value::duration_or_auto)?,
            },
            store: StoreSettings {
                path: self.path("store.path")?,
            },
            cloud: self.cloud()?,
            delivery: DeliverySettings {
                batch_rows: self.number("delivery.batch_rows", value::count)?,
                batch_bytes: self.number("delivery.batch_bytes", value::size)?,
                in_flight: self.number("delivery.in_flight", value::count)?,
                compress: self.optional("delivery.compress", value::boolean)?,
            },
            files: FileSettings {
                driver: self.required("files.driver", value::driver)?,
                bucket: self.optional("files.bucket", text)?,
                prefix: self.optional("files.prefix", text)?,
                endpoint: self.optional("files.endpoint", text)?,
                region: self.optional("files.region", text)?,
                access_key: self.optional("files.access_key", text)?,
                secret_key: self.secret("files.secret_key")?,
                public_url: self.optional("files.public_url", text)?,
                url_valid: self.optional("files.url_valid", value::duration)?,
                field: self.required("files.field", text)?,
                fields: self
                    .optional("files.fields", value::form_fields)?
                    .unwrap_or_default(),
                bandwidth: self.required("files.bandwidth", |text| text.parse())?,
                budget: self.required("files.budget", |text| text.parse())?,
                upload_videos: self.required("files.upload_videos", value::boolean)?,
            },
            control: ControlSettings {
                listen: self.required("control.listen", value::address)?,
                names: self
                    .optional("control.names", value::host_names)?
                    .unwrap_or_default(),
                lag_limit: self.required("control.lag_limit", value::duration)?,
                token: self.secret("control.token")?,
            },
            schedule: ScheduleSettings {
                sync: self.required("schedule.sync", value::cron)?,
                time_zone: self.optional("schedule.time_zone", value::time_zone)?,
                jitter: self.required("schedule.jitter", value::duration)?,
            },
            alerts: AlertSettings {
                webhook: self.secret("alerts.webhook")?,
                email: self.email_alerts()?,
                hold: self.required("alerts.hold", value::duration)?,
            },
            receiver: ReceiverConfig {
                listen: self.required("receiver.listen", value::address)?,
                database_url: self.secret("receiver.database_url")?,
                files: self.path("receiver.files")?,
                public_url: self.optional("receiver.public_url", text)?,
                url_valid: self.optional("receiver.url_valid", value::duration)?,
                keys: self
                    .optional("receiver.keys", value::site_keys)?
                    .unwrap_or_default(),
                history: self.required("receiver.history", value::boolean)?,
            },
            catalogue: match &declared {
                None => Catalogue::builtin(),
                Some(declared) if declared.is_complete() => Catalogue::new(declared.entities.clone())?,
                Some(_) => Catalogue::new(Vec::new())?,
            },
            declared,
        })
    }

    /// The settings of e-mails, which belong together.
    fn email_alerts(&self) -> Result<Option<EmailAlerts>> {
        let to = self.optional("alerts.email_to", value::addresses)?;
        let from = self.optional("alerts.email_from", |text| Ok(text.to_owned()))?;
        let smtp_url = self.secret("alerts.smtp_url")?;
        match (to, from, smtp_url) {
            (None, None, None) => Ok(None),
            (Some(to), Some(from), Some(smtp_url)) => Ok(Some(EmailAlerts { to, from, smtp_url })),
            _ => Err(Error::config(
                "send alerts by e-mail",
                "only some of alerts.email_to, alerts.email_from and alerts.smtp_url are set",
            )
            .remedy("set all three, or none")),
        }
    }

    fn cloud(&self) -> Result<CloudSettings> {
        let cloud = CloudSettings {
            url: self.optional("cloud.url", value::http_url)?,
            key: self.secret("cloud.key")?,
            timeout: self.required("cloud.timeout", value::duration)?,
            profile: self.required("cloud.profile", value::profile)?,
            prefix: self
                .optional("cloud.prefix", value::url_path)?
                .unwrap_or_default(),
            status_path: self.required("cloud.status_path", value::url_path)?,
            capabilities: self.required("cloud.capabilities", value::capabilities)?,
            delete_moved: self.required("cloud.delete_moved", value::boolean)?,
            allow_insecure_http: self.required("cloud.allow_insecure_http", value::boolean)?,
            ca_file: self.optional("cloud.ca_file", |text| Ok(PathBuf::from(text)))?,
        };
        match &cloud.url {
            Some(url) if url.scheme() == "http" && !value::is_loopback(url) && !cloud.allow_insecure_http => {
                Err(self.value("cloud.url")?.value_error(
                    "must start with https://, since key and rows would go in the clear; or set \
                     cloud.allow_insecure_http = true",
                ))
            }
            _ => Ok(cloud),
        }
    }
}

/// Returns the variables of a `.env` file; none if there is no such file.
fn read_dot_env(path: &Path) -> Result<BTreeMap<String, String>> {
    let read_error = |cause: String| Error::config(format!("read {}", path.display()), cause);
    let entries = match dotenvy::from_path_iter(path) {
        Ok(entries) => entries,
        // A folder that the user may not search, as that of another user from which `sudo -u` was called, has
        // no file for this user.
        Err(error) if error.not_found() || path.try_exists().is_err() => return Ok(BTreeMap::new()),
        Err(error) => return Err(read_error(dot_env_error(&error))),
    };
    let mut variables = BTreeMap::new();
    for entry in entries {
        let (name, value) = entry.map_err(|error| {
            read_error(dot_env_error(&error))
                .remedy("write NAME=value, and put a value with spaces, # or $ in single quotes")
        })?;
        variables.insert(name, value);
    }
    Ok(variables)
}

/// Why a `.env` file cannot be read, without the line itself, which may hold a secret.
fn dot_env_error(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::Io(error) => error.to_string(),
        dotenvy::Error::LineParse(line, character) => match line.split_once('=') {
            Some((name, _)) if name.len() < 64 => {
                format!(
                    "the line of {} cannot be read at character {character}",
                    name.trim()
                )
            }
            _ => "a line has no =".to_owned(),
        },
        _ => "a variable cannot be read".to_owned(),
    }
}
