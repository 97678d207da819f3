//! `config`: the effective settings and where each came from.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{Context, SiteFlags, output};
use crate::config::keys::KEYS;
use crate::config::{EffectiveValue, Loaded, Settings};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cloud-sync config
  cloud-sync config --explain      every setting, its variables and its default
  CLOUD_SYNC_CLOUD_TIMEOUT=10s cloud-sync config --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ConfigArgs {
    /// Explain each setting: what it is, its environment variables and its default
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) fn execute(context: &Context, args: &ConfigArgs) -> Result<ExitCode> {
    if args.explain {
        output::print(context.json, &explanations(), |keys| explain(keys))?;
    } else {
        output::print(context.json, &effective(&context.loaded), describe)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Effective {
    file: Option<String>,
    settings: Vec<Setting>,
    entities: Vec<String>,
    entities_from: String,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Setting {
    key: &'static str,
    /// Null if the setting is unset or hidden.
    value: Option<String>,
    hidden: bool,
    from: String,
}

impl Setting {
    fn of(value: &EffectiveValue) -> Self {
        Self {
            key: value.key.name,
            value: value.shown().map(str::to_owned),
            hidden: value.key.secret && value.is_set(),
            from: value.origin.to_string(),
        }
    }

    fn text(&self) -> String {
        match &self.value {
            Some(value) => value.clone(),
            None if self.hidden => "(hidden)".to_owned(),
            None => "(unset)".to_owned(),
        }
    }
}

/// The names of the entities; of one that only the database can name, its table, and the patterns of tables.
fn entities(settings: &Settings) -> Vec<String> {
    let Some(declared) = &settings.declared else {
        let entities = settings.catalogue.entities().iter();
        return entities.map(|entity| entity.name.clone()).collect();
    };
    let listed = declared.entities.iter().map(|entity| match entity.name.as_str() {
        "" => format!("of table {}", entity.table),
        name => name.to_owned(),
    });
    let patterns = declared
        .tables
        .iter()
        .map(|pattern| format!("of tables {pattern}"));
    listed.chain(patterns).collect()
}

fn effective(loaded: &Loaded) -> Effective {
    let file = loaded.file.as_ref().map(|path| path.display().to_string());
    Effective {
        settings: loaded.values.iter().map(Setting::of).collect(),
        entities: entities(&loaded.settings),
        entities_from: match &file {
            Some(file) if loaded.own_catalogue => file.clone(),
            _ => "built in".to_owned(),
        },
        file,
        warnings: loaded.warnings.clone(),
    }
}

fn describe(effective: &Effective) -> String {
    let rows = effective
        .settings
        .iter()
        .map(|setting| vec![setting.key.to_owned(), setting.text(), setting.from.clone()]);
    format!(
        "{}\n\nentities, {}: {}",
        output::table(&["setting", "value", "from"], rows),
        effective.entities_from,
        effective.entities.join(", ")
    )
}

#[derive(Serialize)]
struct SettingExplanation {
    key: &'static str,
    default: Option<&'static str>,
    variables: Vec<String>,
    secret: bool,
    help: &'static str,
}

fn explanations() -> Vec<SettingExplanation> {
    KEYS.iter()
        .map(|key| SettingExplanation {
            key: key.name,
            default: key.default,
            variables: [Some(key.variable()), key.legacy.map(str::to_owned)]
                .into_iter()
                .flatten()
                .collect(),
            secret: key.secret,
            help: key.help,
        })
        .collect()
}

fn explain(keys: &[SettingExplanation]) -> String {
    let mut text = String::new();
    for key in keys {
        let default = key
            .default
            .map_or(String::new(), |default| format!(" = {default}"));
        text.push_str(&format!(
            "{}{default}\n    {}\n    {}\n",
            key.key,
            key.help,
            key.variables.join(", ")
        ));
    }
    text
}
