//! `quarantine`: lists, retries and discards rows that the cloud refused for good or that cannot be read.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use serde_json::json;
use tokio_postgres::Client;

use super::{Context, SiteFlags, output};
use crate::catalogue::Catalogue;
use crate::change::Position;
use crate::error::Result;
use crate::quarantine::{self, QuarantineEntry};
use crate::replicator::connect;
use crate::source::{describe, install, row_facts};

const EXAMPLES: &str = "\
Examples:
  cloud-sync quarantine list
  cloud-sync quarantine list --entity leaves --json
  cloud-sync quarantine show 120017
  cloud-sync quarantine retry 120017 120018
  cloud-sync quarantine retry --all
  cloud-sync quarantine discard 120017
  cloud-sync quarantine add leaves 42";

/// How many entries are touched in one step.
const PAGE_SIZE: u32 = 2_000;

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
        /// Its position, as `list` prints it
        #[arg(value_parser = parse_position)]
        position: Position,
    },
    /// Send changes again: each row's present state
    Retry(ChangeSelection),
    /// Discard changes: the cloud stays without them
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
    /// Their positions, as `list` prints them
    #[arg(value_name = "POSITION", value_parser = parse_position)]
    pub(super) positions: Vec<Position>,
    /// All of them
    #[arg(long)]
    pub(super) all: bool,
}

fn parse_position(text: &str) -> std::result::Result<Position, String> {
    text.parse()
        .map(Position)
        .map_err(|_| "a position is a whole number, as `list` prints it".to_owned())
}

pub(super) async fn execute(context: &Context, args: QuarantineArgs) -> Result<ExitCode> {
    let settings = &context.completed_settings().await?;
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
            let total = quarantine::count(client, entity.as_deref()).await? as usize;
            output::print(context.json, &entries, |entries| describe_list(entries, total))?;
        }
        Action::Show { position } => {
            let entries = quarantine::show(client, position).await?;
            if entries.is_empty() {
                return Err(quarantine::no_such_entry(position));
            }
            output::print(context.json, &entries, |entries| {
                entries
                    .iter()
                    .map(describe_entry)
                    .collect::<Vec<_>>()
                    .join("\n\n")
            })?;
        }
        Action::Retry(selection) => {
            let count = if selection.all {
                retry_all(client, &settings.catalogue).await?
            } else {
                quarantine::retry_at(client, &settings.catalogue, &selection.positions).await?
            };
            output::print(context.json, &json!({"success": true, "captured": count}), |_| {
                format!(
                    "{count} rows are sent again by the running replicator, or by the next `cloud-sync run`"
                )
            })?;
        }
        Action::Discard(selection) => {
            let count = if selection.all {
                quarantine::discard_all(client).await?
            } else {
                quarantine::discard_at(client, &selection.positions).await?
            };
            output::print(
                context.json,
                &json!({"success": true, "discarded": count}),
                |_| format!("{count} refused changes are discarded"),
            )?;
        }
        Action::Add { entity, key } => {
            let entity_index = settings.catalogue.select(std::slice::from_ref(&entity))?[0];
            let tables = describe::present_tables(client, &settings.catalogue).await?;
            let key = row_facts::row_key(&settings.catalogue[entity_index], &tables[entity_index.0], &key)?;
            quarantine::add(client, &entity, &key).await?;
            output::print(
                context.json,
                &json!({"success": true, "entity": entity, "key": key}),
                |_| {
                    format!(
                        "row {key} of {entity} is set aside; a running replicator takes note within a \
                         minute. `cloud-sync quarantine retry` sends the row again"
                    )
                },
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Touches the rows of all entries again, some at a time. Returns how many.
async fn retry_all(client: &Client, catalogue: &Catalogue) -> Result<usize> {
    let tables = describe::present_tables(client, catalogue).await?;
    let attached = install::attached(client, catalogue, &tables).await?;
    let mut count = 0;
    let mut after: Option<(String, String)> = None;
    loop {
        let from = after
            .as_ref()
            .map(|(entity, key)| (entity.as_str(), key.as_str()));
        let entries = quarantine::page(client, from, PAGE_SIZE).await?;
        let Some(last) = entries.last() else {
            return Ok(count);
        };
        after = Some((last.entity.clone(), last.key.clone()));
        count += quarantine::retry(client, catalogue, &attached, &entries).await?;
    }
}

fn describe_list(entries: &[QuarantineEntry], total: usize) -> String {
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
            reason(entry),
        ]
    });
    let mut text = output::table(
        &["position", "entity", "key", "refused at", "times", "reason"],
        rows,
    );
    if entries.len() < total {
        text.push_str(&format!("\n{} more: see --limit", total - entries.len()));
    }
    text
}

/// The cloud's error, or why the row cannot be read.
fn reason(entry: &QuarantineEntry) -> String {
    match entry.code {
        0..=2 => entry.error.clone(),
        code => format!("{code} {}", entry.error),
    }
}

fn describe_entry(entry: &QuarantineEntry) -> String {
    format!(
        "position   {}\nentity     {}\nkey        {}\noperation  {}\nrefused    {} times, first {}, last \
         {}\nreason     {}\nrow        {}",
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
        reason(entry),
        entry.image.as_deref().unwrap_or("none"),
    )
}
