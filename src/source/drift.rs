//! Notices what escapes capture: triggers that are gone, disabled or altered, tables that were dropped,
//! renamed or re-created, partitions that were added or removed, columns whose values changed without a
//! trigger.
//!
//! Two things are kept apart. What is *wrong* now: changes may be missed at this moment, and a person must
//! repair it (or the replicator does, if only its own triggers are out of date). And a *gap*: changes may
//! have been missed before, so that rows of the cloud may differ although nothing waits. A gap is kept in the
//! source database, survives every restart, and is closed by a sync of the entity that began after it was
//! last seen, while capture worked.
//!
//! A site's writer is never held up for any of it: a capture function does not fail because a column is gone,
//! it writes a touch without a key.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::capture::{self, EVENTS};
use super::describe::{self, DescribedTable, SourceTable};
use super::identity;
use crate::catalogue::{Catalogue, Entity};
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// What is wrong with an entity's capture now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriftKind {
    /// Changes may be missed until a person repairs it: what was found.
    Missing(String),
    /// The entity does not fit its table: the whole error.
    Unfit(String),
    /// The table has another name than the catalogue says, and is captured: the whole error.
    Renamed(String),
    /// A partition has no triggers of its own yet: which.
    Joined(String),
    /// A table that is no partition any more still has triggers: which. Its rows left without a trigger.
    Left(String),
    /// The functions were made for another form of the table; they capture all the same.
    Outdated,
}

impl DriftKind {
    /// What is wrong, in words.
    pub fn text(&self, entity: &Entity) -> String {
        match self {
            Self::Missing(what) => what.clone(),
            Self::Joined(partition) => format!("partition {partition} has no triggers yet"),
            Self::Left(table) => {
                format!("{table} is no part of the table any more, and still has its triggers")
            }
            Self::Unfit(error) | Self::Renamed(error) => error.clone(),
            Self::Outdated => format!(
                "the triggers on {} were made for another definition",
                entity.table
            ),
        }
    }

    /// What may have been missed because of it; `None` if nothing was.
    pub fn missed(&self) -> Option<String> {
        match self {
            Self::Missing(what) => Some(format!("changes may have been missed: {what}")),
            Self::Unfit(_) => {
                Some("changes may have been missed while the entity did not fit its table".to_owned())
            }
            Self::Left(_) => Some("a partition left the table, and its rows with it".to_owned()),
            // If the partition holds rows, creating its triggers marks the gap.
            Self::Joined(_) | Self::Renamed(_) | Self::Outdated => None,
        }
    }

    /// Whether re-creating the triggers repairs it, without a person's decision.
    pub fn mends_itself(&self) -> bool {
        matches!(self, Self::Joined(_) | Self::Left(_) | Self::Outdated)
    }

    /// As an error with its remedy, for people.
    pub fn error(&self, entity: &Entity) -> Error {
        let operation = format!("capture {}", entity.name);
        match self {
            Self::Unfit(error) | Self::Renamed(error) => Error::config(operation, error.clone()),
            _ => Error::config(operation, self.text(entity)).remedy(
                "run `cloud-sync init`; a running replicator then compares the entity with the cloud, \
                 else run `cloud-sync sync`",
            ),
        }
    }
}

/// The state of an entity's capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityDrift {
    /// The entity's number in the outbox.
    pub id: i16,
    /// What is wrong now.
    pub wrong: Option<DriftKind>,
    /// Why it cannot be read or sent now; its touches are kept.
    pub parked: Option<String>,
    /// Why rows of the cloud may differ although nothing waits, and a stamp of when that was last seen.
    pub gap: Option<(String, String)>,
}

/// A table with triggers: the entity's own first, then each partition below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedTable {
    /// Its name with its schema, quoted for SQL.
    pub sql_name: String,
    /// Triggers that are missing, or do not fire always.
    pub missing: Vec<String>,
    /// Whether it has none of the triggers at all.
    pub uncaptured: bool,
    /// Whether it is a foreign table, which can have no such triggers.
    pub foreign: bool,
}

/// The tables of entities with their partitions, by the entities' numbers. `entities` are numbers and tables.
async fn all_members(
    client: &Client,
    entities: &[(i16, &SourceTable)],
) -> Result<HashMap<i16, Vec<CapturedTable>>> {
    let oids: Vec<u32> = entities.iter().map(|(_, table)| table.oid).collect();
    let rows = client
        .query(statement!("drift", "members"), &[&oids])
        .await
        .map_err(|error| Error::postgres("list the captured tables and their partitions", error))?;
    let mut rows_of: HashMap<u32, Vec<&Row>> = HashMap::new();
    for row in &rows {
        rows_of.entry(row.get(4)).or_default().push(row);
    }
    let members = entities.iter().map(|&(id, table)| {
        let rows = rows_of.get(&table.oid).into_iter().flatten();
        (id, rows.map(|row| captured_table(row, id, table)).collect())
    });
    Ok(members.collect())
}

fn captured_table(row: &Row, id: i16, table: &SourceTable) -> CapturedTable {
    let there: Vec<String> = row.get(2);
    let wanted = EVENTS
        .iter()
        .filter(|event| row.get::<_, bool>(3) || event.on_partitions());
    let count = wanted.clone().count();
    let missing: Vec<_> = wanted
        .map(|event| (event.trigger(id, table.oid), event.enabled_letter()))
        .filter(|(name, enabled)| !there.contains(&format!("{name} {enabled}")))
        .map(|(name, _)| name)
        .collect();
    CapturedTable {
        sql_name: row.get(0),
        foreign: row.get::<_, &str>(1) == "f",
        uncaptured: missing.len() == count,
        missing,
    }
}

/// The tables that need triggers: the entity's own, and its partitions at every level.
pub(super) async fn members(client: &Client, table: &SourceTable, id: i16) -> Result<Vec<CapturedTable>> {
    let mut members = all_members(client, &[(id, table)]).await?;
    let mut members = members.remove(&id).unwrap_or_default();
    members.retain(|member| !member.foreign);
    Ok(members)
}

/// Tables that have triggers of entities, by the entities' numbers: each with such a trigger.
async fn triggered_tables(client: &Client, ids: &[i16]) -> Result<HashMap<i16, Vec<(String, String)>>> {
    let rows = client
        .query(statement!("drift", "triggered"), &[&ids])
        .await
        .map_err(|error| Error::postgres("list the captured tables", error))?;
    let mut tables: HashMap<i16, Vec<(String, String)>> = HashMap::new();
    for row in &rows {
        let of_entity = tables.entry(row.get(0)).or_default();
        of_entity.push((row.get(1), row.get(2)));
    }
    Ok(tables)
}

/// Tables that have triggers of the entity and are none of `members`, each with such a trigger.
pub(super) async fn strangers(
    client: &Client,
    id: i16,
    members: &[CapturedTable],
) -> Result<Vec<(String, String)>> {
    let mut tables = triggered_tables(client, &[id]).await?;
    let mut tables = tables.remove(&id).unwrap_or_default();
    tables.retain(|(table, _)| !members.iter().any(|member| member.sql_name == *table));
    Ok(tables)
}

/// The state of one entity's capture; `None` if it was never attached.
///
/// # Errors
/// The source's.
pub(super) async fn watch_one(
    client: &Client,
    entity: &Entity,
    table: &SourceTable,
) -> Result<Option<EntityDrift>> {
    Ok(watch_each(client, &[(entity, table)]).await?.pop().flatten())
}

/// The state of the capture of each entity of the catalogue; `None` if it was never attached.
///
/// # Errors
/// The source's.
pub async fn watch_attached(client: &Client, catalogue: &Catalogue) -> Result<Vec<Option<EntityDrift>>> {
    let described = describe::described_tables(client, catalogue).await?;
    let tables = described.iter().map(|described| &described.table);
    let entities: Vec<(&Entity, &SourceTable)> = catalogue.entities().iter().zip(tables).collect();
    watch_each(client, &entities).await
}

/// The state of each entity's capture; `None` if it was never attached.
///
/// # Errors
/// The source's.
pub(super) async fn watch_each(
    client: &Client,
    entities: &[(&Entity, &SourceTable)],
) -> Result<Vec<Option<EntityDrift>>> {
    let names: Vec<&str> = entities.iter().map(|(entity, _)| entity.name.as_str()).collect();
    let rows = client
        .query(statement!("drift", "captured"), &[&names])
        .await
        .map_err(|error| Error::postgres("check the capture", error))?;
    let captured: HashMap<&str, &Row> = rows.iter().map(|row| (row.get(9), row)).collect();
    let ids: Vec<i16> = rows.iter().map(|row| row.get(0)).collect();
    let there = entities.iter().filter(|(_, table)| table.oid != 0);
    let numbered: Vec<(i16, &SourceTable)> = there
        .filter_map(|(entity, table)| Some((captured.get(entity.name.as_str())?.get(0), *table)))
        .collect();
    let members = all_members(client, &numbered).await?;
    let triggered = triggered_tables(client, &ids).await?;
    Ok(entities
        .iter()
        .map(|(entity, table)| {
            let row = captured.get(entity.name.as_str())?;
            let id: i16 = row.get(0);
            let members = members.get(&id).map_or(&[][..], Vec::as_slice);
            let triggered = triggered.get(&id).map_or(&[][..], Vec::as_slice);
            Some(drift_of(row, entity, table, members, triggered))
        })
        .collect())
}

/// What the row of an entity's capture tells, and its tables. `triggered` are the tables with triggers of the
/// entity, each with such a trigger.
fn drift_of(
    row: &Row,
    entity: &Entity,
    table: &SourceTable,
    members: &[CapturedTable],
    triggered: &[(String, String)],
) -> EntityDrift {
    let gap = row
        .get::<_, Option<String>>(5)
        .zip(row.get::<_, Option<String>>(6));
    let mut watched = EntityDrift {
        id: row.get(0),
        wrong: None,
        parked: row.get(8),
        gap,
    };
    if table.oid == 0 {
        return watched;
    }
    let is_member = |name: &String| members.iter().any(|member| member.sql_name == *name);
    let mut strangers = triggered.iter().filter(|(name, _)| !is_member(name));
    let (root, partitions) = members.split_at(1.min(members.len()));
    watched.wrong = if row.get::<_, bool>(3) {
        Some(DriftKind::Missing("it was detached".to_owned()))
    } else if row.get::<_, u32>(1) != table.oid {
        Some(DriftKind::Missing("its table was re-created".to_owned()))
    } else if let Some(root) = root.iter().find(|root| !root.missing.is_empty()) {
        Some(DriftKind::Missing(format!(
            "trigger {} on {} is missing or disabled",
            root.missing.join(", "),
            root.sql_name
        )))
    } else if let Some(partition) = partitions
        .iter()
        .find(|member| !member.foreign && !member.missing.is_empty() && !member.uncaptured)
    {
        Some(DriftKind::Missing(format!(
            "trigger {} on partition {} is missing or disabled",
            partition.missing.join(", "),
            partition.sql_name
        )))
    } else if let Some(partition) = partitions
        .iter()
        .find(|member| !member.foreign && member.uncaptured)
    {
        Some(DriftKind::Joined(partition.sql_name.clone()))
    } else if let Some((stranger, _)) = strangers.next() {
        Some(DriftKind::Left(stranger.clone()))
    } else if !row.get::<_, bool>(4) {
        Some(DriftKind::Missing(
            "its triggers or functions were altered since they were installed".to_owned(),
        ))
    } else {
        let same = row.get::<_, &str>(2) == capture::definition(entity, table)
            && row.get::<_, Option<&str>>(7) == Some(&capture::selection(entity));
        (!same).then_some(DriftKind::Outdated)
    };
    watched
}

/// The error of an entity whose table never had triggers.
pub(super) fn never_attached(entity: &Entity) -> Error {
    Error::config(
        format!("replicate entity {}", entity.name),
        "its table has no capture triggers",
    )
    .remedy("run `cloud-sync init`")
}

/// The state of each entity's capture, in the catalogue's order.
///
/// # Errors
/// The source's; a configuration error if capture is not installed, or an entity was never attached.
pub async fn watch(client: &Client, catalogue: &Catalogue) -> Result<Vec<(DescribedTable, EntityDrift)>> {
    if !identity::installed(client).await? {
        return Err(identity::not_installed());
    }
    let mut all = Vec::with_capacity(catalogue.entities().len());
    let described = describe::described_tables(client, catalogue).await?;
    let tables = described.iter().map(|described| &described.table);
    let entities: Vec<(&Entity, &SourceTable)> = catalogue.entities().iter().zip(tables).collect();
    let watched = watch_each(client, &entities).await?;
    let described = described.into_iter().zip(watched);
    for (entity, (described, watched)) in catalogue.entities().iter().zip(described) {
        let mut watched = watched.ok_or_else(|| never_attached(entity))?;
        if let Some(unfit) = &described.unfit {
            let text = unfit.to_string();
            let captured = matches!(watched.wrong, None | Some(DriftKind::Outdated));
            watched.wrong = Some(if described.renamed && captured {
                DriftKind::Renamed(text)
            } else {
                DriftKind::Unfit(text)
            });
        }
        all.push((described, watched));
    }
    Ok(all)
}

/// Remembers the columns of the entities' tables, and marks a gap of each where they show that values changed
/// without a trigger. Returns whether it marked one. `entities` are numbers and tables; a table that is gone is
/// passed over.
///
/// # Errors
/// The source's.
pub async fn note_shapes<'a>(
    client: &Client,
    entities: impl Iterator<Item = (i16, &'a SourceTable)>,
) -> Result<bool> {
    let there = entities.filter(|(_, table)| table.oid != 0);
    let (ids, oids): (Vec<i16>, Vec<u32>) = there.map(|(id, table)| (id, table.oid)).unzip();
    let row = client
        .query_one(statement!("drift", "note_shape"), &[&ids, &oids])
        .await
        .map_err(|error| Error::postgres("remember the columns of the captured tables", error))?;
    Ok(row.get(0))
}

/// Marks a gap. It is on the source's disk when this returns.
///
/// # Errors
/// The source's.
pub async fn mark(client: &Client, id: i16, gap: &str) -> Result<()> {
    client
        .execute(statement!("drift", "mark"), &[&id, &gap])
        .await
        .map_err(|error| Error::postgres("remember that changes were missed", error))?;
    Ok(())
}

/// Marks a gap of every entity. It is on the source's disk when this returns.
///
/// # Errors
/// The source's.
pub async fn mark_all(client: &Client, gap: &str) -> Result<()> {
    client
        .execute(statement!("drift", "mark_all"), &[&gap])
        .await
        .map_err(|error| Error::postgres("remember that every entity is to be compared", error))?;
    Ok(())
}

/// Marks a gap of every entity that has rows in an unlogged table, a partition included. It is on the
/// source's disk when this returns.
///
/// # Errors
/// The source's.
pub async fn mark_unlogged(client: &Client, gap: &str) -> Result<()> {
    client
        .execute(statement!("drift", "mark_unlogged"), &[&gap])
        .await
        .map_err(|error| Error::postgres("remember that unlogged tables are to be compared", error))?;
    Ok(())
}

/// The stamp of the entity's gap, if a sync that begins now would close it; `None` if there is no gap, or if
/// changes may still be missed.
///
/// # Errors
/// The source's.
pub async fn closable(client: &Client, entity: &Entity, table: &SourceTable) -> Result<Option<String>> {
    let watched = watch_one(client, entity, table).await?;
    Ok(watched
        .filter(|watched| {
            watched
                .wrong
                .as_ref()
                .is_none_or(|wrong| wrong.missed().is_none())
        })
        .and_then(|watched| watched.gap)
        .map(|(_, stamp)| stamp))
}

/// Closes the gap with this stamp: what the entity's table holds is in the outbox or in the cloud. A gap that
/// was seen again since stays.
///
/// # Errors
/// The source's.
pub async fn close(client: &Client, entity: &Entity, stamp: &str) -> Result<()> {
    client
        .execute(statement!("drift", "close"), &[&entity.name, &stamp])
        .await
        .map_err(|error| Error::postgres("remember what was compared", error))?;
    Ok(())
}
