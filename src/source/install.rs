//! Installs capture and removes it; both can be run again.
//!
//! `init` migrates schema `cloud_sync`, re-creates its functions, numbers the entities, and creates a
//! function and a trigger for each entity and event. It locks a table once, for the moment that creating
//! triggers takes, under a `lock_timeout`, and tries again: writers never wait behind a long transaction for
//! it.

use std::time::Duration;

use secrecy::SecretString;
use sqlx::PgPool;
use tokio_postgres::Client;

use super::capture::{self, EVENTS};
use super::connect::Session;
use super::describe::{self, SourceTable};
use super::drift::DriftKind;
use super::identity::OutboxDeclaration;
pub use super::identity::{installed, not_installed};
use super::{drift, quote_text};
use crate::catalogue::{Catalogue, Entity};
use crate::error::{Class, Error, Kind, Result};
use crate::sql_template::{fill, statement};

/// Functions, each defined once: `init` re-creates them.
const FUNCTIONS: [&str; 3] = [
    include_str!("../../sql/functions/state.sql"),
    include_str!("../../sql/functions/segments.sql"),
    include_str!("../../sql/functions/drift.sql"),
];

/// How many segments there are from the beginning.
const SEGMENTS: i64 = 4;

/// The migrations, without sqlx's own lock: that is an advisory lock, which any role could hold for ever.
pub(super) fn migrations() -> sqlx::migrate::Migrator {
    let mut migrations = sqlx::migrate!("migrations/source");
    migrations.set_locking(false);
    migrations
}

/// An entity's place in the outbox: its number and whether its triggers are the ones that the catalogue asks
/// for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedEntity {
    /// The entity's number in the outbox.
    pub id: i16,
    /// What is wrong with its capture; `None` if nothing is.
    pub wrong: Option<String>,
    /// Why it cannot be read or sent now.
    pub parked: Option<String>,
}

/// What `init` did.
#[derive(Debug, Default)]
pub struct Installed {
    /// Entities whose triggers were made now.
    pub attached: Vec<String>,
    /// Entities whose triggers were as they should be.
    pub unchanged: Vec<String>,
    /// Entities that the catalogue no longer has, whose triggers were dropped.
    pub detached: Vec<String>,
    /// The epoch now.
    pub epoch: i64,
}

/// Installs capture for the catalogue, and records what the operator has `declared` of the outbox.
///
/// # Errors
/// The catalogue's, the source's, or that a table could not be locked within ten tries of two seconds.
pub async fn init(
    url: &SecretString,
    catalogue: &Catalogue,
    declared: OutboxDeclaration,
) -> Result<Installed> {
    let session = Session::open(url, "init").await?;
    check_version(session.client()).await?;
    super::connect::must_keep_sessions(url).await?;
    let tables = describe::fitting_tables(session.client(), catalogue).await?;
    migrate(url, session.client()).await?;
    let epoch = super::identity::establish(session.client(), declared).await?;
    let mut installed = Installed {
        epoch: epoch.0,
        ..Installed::default()
    };
    let entities: Vec<(&Entity, &SourceTable)> = catalogue.entities().iter().zip(&tables).collect();
    let before = drift::watch_each(session.client(), &entities).await?;
    for ((entity, table), before) in entities.into_iter().zip(before) {
        if before.is_some_and(|watched| watched.wrong.is_none()) {
            installed.unchanged.push(entity.name.clone());
        } else {
            attach(session.client(), entity, table).await?;
            installed.attached.push(entity.name.clone());
        }
    }
    installed.detached = detach_others(session.client(), catalogue).await?;
    Ok(installed)
}

/// Brings schema `cloud_sync` up to this program's version: its tables and its functions. Tables of the site
/// are not touched.
///
/// # Errors
/// The source's; a newer cloud-sync has migrated it.
pub async fn migrate_schema(url: &SecretString) -> Result<()> {
    let session = Session::open(url, "init").await?;
    check_version(session.client()).await?;
    super::connect::must_keep_sessions(url).await?;
    migrate(url, session.client()).await
}

/// Fails if a replicator leads: it holds a lock in schema `cloud_sync`, which then could not be dropped.
///
/// # Errors
/// That one, and the source's.
pub async fn must_not_be_led(client: &Client) -> Result<()> {
    match super::leader_lock::holder(client).await? {
        None => Ok(()),
        Some(leader) => Err(Error::config(
            "remove capture",
            format!("a replicator drains the outbox now ({leader} of the site's database)"),
        )
        .remedy("stop `cloud-sync run` there, then run `cloud-sync uninstall` again")),
    }
}

/// Removes capture, the outbox, and everything else in schema `cloud_sync`.
///
/// # Errors
/// The source's, and a configuration error if a replicator leads.
pub async fn uninstall(url: &SecretString) -> Result<Vec<String>> {
    let session = Session::open(url, "uninstall").await?;
    if !installed(session.client()).await? {
        return Ok(Vec::new());
    }
    must_not_be_led(session.client()).await?;
    let empty = Catalogue::new(Vec::new())?;
    let detached = detach_others(session.client(), &empty).await?;
    session
        .client()
        .batch_execute(statement!("install", "drop_schema"))
        .await
        .map_err(|error| Error::postgres("drop schema cloud_sync", error))?;
    Ok(detached)
}

/// The number of each entity of the catalogue, and the state of its capture.
///
/// # Errors
/// The source's; a configuration error if an entity was never attached.
pub async fn attached(
    client: &Client,
    catalogue: &Catalogue,
    tables: &[SourceTable],
) -> Result<Vec<AttachedEntity>> {
    if !installed(client).await? {
        return Err(not_installed());
    }
    let entities: Vec<(&Entity, &SourceTable)> = catalogue.entities().iter().zip(tables).collect();
    let watched = drift::watch_each(client, &entities).await?;
    let entities = entities.into_iter().zip(watched);
    entities
        .map(|((entity, _), watched)| {
            let watched = watched.ok_or_else(|| drift::never_attached(entity))?;
            Ok(AttachedEntity {
                id: watched.id,
                wrong: watched.wrong.map(|wrong| wrong.text(entity)),
                parked: watched.parked,
            })
        })
        .collect()
}

/// Fails if schema `cloud_sync` is of a version whose outbox holds rows and not touches.
async fn must_be_current(client: &Client) -> Result<()> {
    let row = client
        .query_one(statement!("install", "has_rows"), &[])
        .await
        .map_err(|error| Error::postgres("read the version of schema cloud_sync", error))?;
    if row.get(0) {
        return Err(Error::config(
            "install capture",
            "schema cloud_sync is of an older version of cloud-sync, whose outbox this version cannot read",
        )
        .remedy(
            "let the older version drain the outbox, run `cloud-sync uninstall` and `cloud-sync init`, \
             then `cloud-sync sync`",
        ));
    }
    Ok(())
}

/// Makes the entity's functions and triggers, in one transaction that locks its table for a moment: those of
/// each partition too, since a statement on a partition fires no trigger of the table above it. It drops
/// triggers on tables that no longer belong to the entity. If only the functions are outdated, the triggers
/// stay, and no table is locked.
///
/// # Errors
/// The source's, or that the table could not be locked.
pub async fn attach(client: &Client, entity: &Entity, table: &SourceTable) -> Result<i16> {
    let operation = format!("install capture on table {}", entity.table);
    let failed = |error| Error::postgres(&operation, error);
    must_be_current(client).await?;
    let before = drift::watch_one(client, entity, table).await?;
    let row = client
        .query_one(
            statement!("install", "number_entity"),
            &[&entity.name, &table.sql_name, &table.oid],
        )
        .await
        .map_err(failed)?;
    let id: i16 = row.get(0);
    let sent_as: Option<String> = row.get(1);
    let selection = capture::selection(entity);
    let triggers_stay = before
        .as_ref()
        .is_some_and(|watched| watched.wrong == Some(DriftKind::Outdated));
    let (members, strangers) = if triggers_stay {
        (Vec::new(), Vec::new())
    } else {
        let members = drift::members(client, table, id).await?;
        let strangers = drift::strangers(client, id, &members).await?;
        (members, strangers)
    };
    let mut triggers: String = strangers
        .iter()
        .map(|(stranger, trigger)| drop_trigger(trigger, stranger))
        .collect();
    let (number, oid) = (id.to_string(), table.oid.to_string());
    let mut gaps = String::new();
    for (index, member) in members.iter().enumerate() {
        let is_partition = index > 0;
        for event in EVENTS {
            if !is_partition || event.on_partitions() {
                triggers += &event.create(id, table.oid, &member.sql_name, is_partition);
                triggers.push('\n');
            }
        }
        if member.uncaptured && is_partition {
            let values = [
                (
                    "gap",
                    &*quote_text("a partition was added that has or had rows in it"),
                ),
                ("id", &number),
                ("partition", &quote_text(&member.sql_name)),
            ];
            gaps += &fill(statement!("install", "mark_added_partition"), &values);
            gaps.push('\n');
        }
    }
    let mut mark_gap = |gap: &str| {
        let values = [("gap", &*quote_text(gap)), ("id", &number)];
        gaps += &fill(statement!("install", "mark_gap"), &values);
        gaps.push('\n');
    };
    let missed = before
        .and_then(|watched| watched.wrong)
        .and_then(|wrong| wrong.missed());
    if let Some(gap) = missed {
        mark_gap(&gap);
    }
    if sent_as.is_some_and(|before| before != selection) {
        mark_gap("which rows and columns are sent has changed: others may be in the cloud");
    }
    let sql = fill(
        statement!("install", "attach"),
        &[
            ("functions", &capture::functions(entity, table, id)),
            ("triggers", &triggers),
            ("gaps", &gaps),
            ("id", &number),
            ("oid", &oid),
            ("definition", &quote_text(&capture::definition(entity, table))),
            ("selection", &quote_text(&selection)),
        ],
    );
    with_lock(client, &operation, &sql).await?;
    Ok(id)
}

/// Runs a script that needs a table's lock, up to ten times.
pub(super) async fn with_lock(client: &Client, operation: &str, sql: &str) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        let Err(error) = client.batch_execute(sql).await else {
            return Ok(());
        };
        let error = Error::postgres(operation, error);
        let _ = client.batch_execute("rollback").await;
        if error.sqlstate() == Some("42501") {
            return Err(
                error.remedy("connect as the owner of the table, or as a member of the role that owns it")
            );
        }
        if error.class() != Class::Retry || tries == 10 {
            return Err(error.remedy("if a long transaction holds the table, try again when it has ended"));
        }
        tracing::warn!(tries, "{error}: trying again");
        tokio::time::sleep(Duration::from_millis(200 * tries)).await;
    }
}

/// Drops the triggers of entities that the catalogue does not have.
async fn detach_others(client: &Client, catalogue: &Catalogue) -> Result<Vec<String>> {
    let rows = client
        .query(statement!("install", "attached"), &[])
        .await
        .map_err(|error| Error::postgres("list the captured tables", error))?;
    let mut detached = Vec::new();
    for row in rows {
        let (id, name): (i16, String) = (row.get(0), row.get(1));
        if catalogue.find(&name).is_some() {
            continue;
        }
        let strangers = drift::strangers(client, id, &[]).await?;
        let triggers: String = strangers
            .iter()
            .map(|(table, trigger)| drop_trigger(trigger, table))
            .collect();
        let functions: String = EVENTS
            .iter()
            .map(|event| {
                let values = [("function", &*event.function(id))];
                fill(statement!("install", "drop_function"), &values) + "\n"
            })
            .collect();
        let sql = fill(
            statement!("install", "detach"),
            &[
                ("triggers", &triggers),
                ("functions", &functions),
                ("id", &id.to_string()),
            ],
        );
        with_lock(client, &format!("take capture away from {name}"), &sql).await?;
        detached.push(name);
    }
    Ok(detached)
}

/// The SQL that drops a trigger of a table; both are names in SQL.
fn drop_trigger(trigger: &str, table: &str) -> String {
    let values = [("trigger", trigger), ("table", table)];
    fill(statement!("install", "drop_trigger"), &values) + "\n"
}

async fn check_version(client: &Client) -> Result<()> {
    let row = client
        .query_one(statement!("install", "server"), &[])
        .await
        .map_err(|error| Error::postgres("read the server's version", error))?;
    if row.get::<_, i32>(0) < 140_000 {
        return Err(Error::config(
            "install capture",
            format!(
                "the site's PostgreSQL is version {}, and 14 is the oldest that serves",
                row.get::<_, &str>(1)
            ),
        )
        .remedy("upgrade the server"));
    }
    if row.get(2) {
        return Err(Error::new(
            Kind::Config,
            "install capture",
            "the server is a standby: it cannot be written to",
        )
        .remedy("name the primary in source.database_url"));
    }
    Ok(())
}

async fn migrate(url: &SecretString, client: &Client) -> Result<()> {
    client
        .batch_execute(statement!("install", "create_schema"))
        .await
        .map_err(|error| {
            Error::postgres("create schema cloud_sync", error).remedy(
                "connect as a role that may create schemas in the database (grant create on database)",
            )
        })?;
    must_be_current(client).await?;
    client
        .batch_execute(statement!("install", "begin_migrating"))
        .await
        .map_err(|error| {
            Error::postgres("migrate the outbox", error)
                .remedy("wait until the other `cloud-sync init` has ended")
        })?;
    let pool: PgPool = super::connect::pool(url).await?;
    let mut connection = pool
        .acquire()
        .await
        .map_err(|error| Error::sqlx("migrate the outbox", error))?;
    sqlx::raw_sql(statement!("install", "migrations_path"))
        .execute(&mut *connection)
        .await
        .map_err(|error| Error::sqlx("migrate the outbox", error))?;
    let migrated = migrations().run(&mut *connection).await;
    drop(connection);
    pool.close().await;
    client
        .batch_execute("commit")
        .await
        .map_err(|error| Error::postgres("migrate the outbox", error))?;
    migrated.map_err(|error| {
        Error::new(Kind::Source, "migrate the outbox", crate::error::chain(&error))
            .remedy("a newer cloud-sync may have migrated it: use that version")
    })?;
    let failed = |error| Error::postgres("re-create the functions of schema cloud_sync", error);
    for functions in FUNCTIONS {
        client.batch_execute(functions).await.map_err(failed)?;
    }
    client
        .execute(statement!("segments", "add"), &[&SEGMENTS])
        .await
        .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn init_re_creates_every_function_once() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/functions");
        let mut files = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            assert!(FUNCTIONS.contains(&&*text));
            files += 1;
        }
        assert_eq!(files, FUNCTIONS.len());
        let all = FUNCTIONS.concat();
        let mut names: Vec<&str> = all
            .split("create or replace function cloud_sync.")
            .skip(1)
            .filter_map(|rest| rest.split('(').next())
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(!all.contains("create function"));
    }
}
