//! `quarantine`: decides on rows that the cloud refused for good, or that cannot be read.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{Context, SiteFlags, output};
use crate::catalogue::Entity;
use crate::change::Position;
use crate::error::{Error, Result};
use crate::quarantine::{self, QuarantineEntry};
use crate::replicator::connect;
use crate::source::describe::{self, SourceTable};
use crate::source::install;

const EXAMPLES: &str = "\
Examples:
  cloud-sync quarantine list
  cloud-sync quarantine list --entity leaves --json
  cloud-sync quarantine show 120017
  cloud-sync quarantine retry 120017 120018
  cloud-sync quarantine retry --all
  cloud-sync quarantine discard 120017
  cloud-sync quarantine add leaves 42";

/// Entries that are touched again at once.
const PAGE: u32 = 2_000;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    pub(super) action: Action,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// The refused changes, with the cloud's reason
    List {
        /// Only this entity
        #[arg(long, value_name = "NAME")]
        entity: Option<String>,
        /// At most this many, the oldest first
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// One refused change in full, its row included
    Show {
        /// Its position, as list tells it
        #[arg(value_parser = position)]
        position: Position,
    },
    /// Send changes again: each row's present state
    Retry(ChangeSelection),
    /// Give changes up: the cloud stays without them
    Discard(ChangeSelection),
    /// Set a row aside by hand: it is not sent until it is retried or discarded
    Add {
        /// The row's entity
        entity: String,
        /// The row's key: a JSON object, or the value of a key of one column
        key: String,
    },
}

/// Which refused changes are meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct ChangeSelection {
    /// Their positions, as list tells them
    #[arg(value_name = "POSITION", value_parser = position)]
    pub(super) positions: Vec<Position>,
    /// All of them
    #[arg(long)]
    pub(super) all: bool,
}

fn position(text: &str) -> std::result::Result<Position, String> {
    text.parse()
        .map(Position)
        .map_err(|_| "a position is a whole number, as list tells it".to_owned())
}

pub(super) async fn execute(context: &Context, args: QuarantineArgs) -> Result<ExitCode> {
    let settings = context.settings();
    let session = connect(settings, "quarantine").await?;
    let client = session.client();
    if !install::installed(client).await? {
        return Err(install::not_installed());
    }
    match args.action {
        Action::List { entity, limit } => {
            if let Some(name) = &entity {
                settings.catalogue.select(std::slice::from_ref(name))?;
            }
            let entries = quarantine::oldest(client, entity.as_deref(), limit).await?;
            let all = quarantine::count(client, entity.as_deref()).await? as usize;
            output::show(context.json, &entries, |entries| listed(entries, all))?;
        }
        Action::Show { position } => {
            let entries = quarantine::show(client, position).await?;
            if entries.is_empty() {
                return Err(nothing(position));
            }
            output::show(context.json, &entries, |entries| {
                entries.iter().map(shown).collect::<Vec<_>>().join("\n\n")
            })?;
        }
        Action::Retry(chosen) => {
            let tables = describe::tables_as_they_stand(client, &settings.catalogue).await?;
            let attached = install::attached(client, &settings.catalogue, &tables).await?;
            let touch = async |entries: Vec<QuarantineEntry>| {
                quarantine::retry(client, &settings.catalogue, &attached, &entries).await
            };
            let count = if chosen.all {
                let mut count = 0;
                let mut after: Option<(String, String)> = None;
                loop {
                    let from = after
                        .as_ref()
                        .map(|(entity, key)| (entity.as_str(), key.as_str()));
                    let entries = quarantine::page(client, from, PAGE).await?;
                    let Some(last) = entries.last() else { break count };
                    after = Some((last.entity.clone(), last.key.clone()));
                    count += touch(entries).await?;
                }
            } else {
                touch(choose(client, &chosen.positions).await?).await?
            };
            output::show(context.json, &json!({"success": true, "captured": count}), |_| {
                format!(
                    "{count} rows are sent again by the running replicator, or by the next `cloud-sync run`"
                )
            })?;
        }
        Action::Discard(chosen) => {
            let count = if chosen.all {
                quarantine::discard_all(client).await?
            } else {
                quarantine::discard(client, &choose(client, &chosen.positions).await?).await?
            };
            output::show(
                context.json,
                &json!({"success": true, "discarded": count}),
                |_| format!("{count} refused changes are given up"),
            )?;
        }
        Action::Add { entity, key } => {
            let entity_index = settings.catalogue.select(std::slice::from_ref(&entity))?[0];
            let tables = describe::tables_as_they_stand(client, &settings.catalogue).await?;
            let key = row_key(&settings.catalogue[entity_index], &tables[entity_index.0], &key)?;
            quarantine::add(client, &entity, &key).await?;
            output::show(
                context.json,
                &json!({"success": true, "entity": entity, "key": key}),
                |_| {
                    format!(
                        "row {key} of {entity} is set aside, within a minute where a replicator runs: \
                         `cloud-sync quarantine retry` sends it again"
                    )
                },
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The types whose values stand in JSON without quotes.
const BARE: [&str; 7] = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "boolean",
];

/// A key as the operator writes it, as the quarantine has it: a JSON object of the key columns, in their order.
fn row_key(entity: &Entity, table: &SourceTable, text: &str) -> Result<String> {
    let wrong = || {
        let example: Vec<String> = entity
            .key
            .iter()
            .map(|column| format!("\"{column}\": 42"))
            .collect();
        Error::config(
            format!("use the key {text} of {}", entity.name),
            format!("it is no JSON object of {}", entity.key.join(", ")),
        )
        .remedy(format!("write it as in '{{{}}}'", example.join(", ")))
    };
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => Value::from(text),
    };
    let mut pairs = Vec::with_capacity(entity.key.len());
    for column in &entity.key {
        let part = match &value {
            Value::Object(fields) => fields
                .get(column)
                .filter(|part| !part.is_null())
                .ok_or_else(wrong)?,
            single if entity.key.len() == 1 => single,
            _ => return Err(wrong()),
        };
        let is_text = !table
            .column(column)
            .is_some_and(|column| BARE.contains(&column.base_type.as_str()));
        let part = match part {
            Value::String(text) if !is_text => text.clone(),
            Value::Number(_) | Value::Bool(_) if is_text => Value::from(part.to_string()).to_string(),
            part => part.to_string(),
        };
        pairs.push(format!("{}:{part}", Value::from(column.as_str())));
    }
    Ok(format!("{{{}}}", pairs.join(",")))
}

fn nothing(position: Position) -> Error {
    Error::config(
        format!("find position {position} in quarantine"),
        "no refused change has it",
    )
    .remedy("see `cloud-sync quarantine list`")
}

/// The chosen entries; every given position must be one's.
async fn choose(client: &Client, positions: &[Position]) -> Result<Vec<QuarantineEntry>> {
    let entries = quarantine::at(client, positions).await?;
    match positions
        .iter()
        .find(|position| !entries.iter().any(|entry| entry.position == position.0))
    {
        Some(position) => Err(nothing(*position)),
        None => Ok(entries),
    }
}

fn listed(entries: &[QuarantineEntry], all: usize) -> String {
    if entries.is_empty() {
        return "the quarantine is empty".to_owned();
    }
    let rows = entries.iter().map(|entry| {
        vec![
            entry.position.to_string(),
            entry.entity.clone(),
            entry.key.clone(),
            entry.refused_at.clone(),
            entry.attempts.to_string(),
            answer(entry),
        ]
    });
    let mut text = output::table(
        &["position", "entity", "key", "refused at", "times", "reason"],
        rows,
    );
    if entries.len() < all {
        text.push_str(&format!("\n{} more: see --limit", all - entries.len()));
    }
    text
}

/// The cloud's answer, or why the row cannot be read.
fn answer(entry: &QuarantineEntry) -> String {
    match entry.code {
        0..=2 => entry.error.clone(),
        code => format!("{code} {}", entry.error),
    }
}

fn shown(entry: &QuarantineEntry) -> String {
    format!(
        "position   {}\nentity     {}\nkey        {}\noperation  {}\nrefused    {} times, first {}, last {}\nreason     {}\nrow        {}",
        entry.position,
        entry.entity,
        entry.key,
        match entry.op.as_str() {
            "d" => "delete",
            "t" => "truncate",
            "r" => "none: the row cannot be read",
            _ => "upsert",
        },
        entry.attempts,
        entry.first_refused_at,
        entry.refused_at,
        answer(entry),
        entry.image.as_deref().unwrap_or("none"),
    )
}
