//! Whose outbox it is: a checkpoint belongs to one database server, one database and one outbox.
//!
//! The outbox remembers the server's `system_identifier`, and the database's number and name. A dump restored elsewhere, or under the
//! same name, carries the outbox but not the server: capture would go on under positions that the cloud may have seen
//! otherwise, so that the replicator stops until an operator says that it is a new outbox (`init --new-epoch`).

use tokio_postgres::Client;

use crate::change::Epoch;
pub use crate::checkpoint::Identity;
use crate::error::{Error, Kind, Result};

// The numbers of database and outbox too: what was dropped and made again under the same name is another one.
const SYSTEM: &str = "select system_identifier || '/' || (select oid from pg_database where datname = current_database()) \
     || '/' || current_database() || '/' || 'cloud_sync.outbox'::regclass::oid from pg_control_system()";

/// What an operator says about the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutboxDeclaration {
    /// Nothing: it must be where it was made.
    #[default]
    Nothing,
    /// It is a new one, in the place of another: after a restore.
    NewEpoch,
    /// It is the same one on another server: after `pg_upgrade`, which keeps transaction numbers and tables.
    Same,
}

/// The outbox's identity as it is stored.
#[derive(Debug, Clone)]
pub struct StoredIdentity {
    /// Whose outbox.
    pub identity: Identity,
    /// Whether its epoch is known to lie above all that the cloud knows of the source.
    pub settled: bool,
    /// Whether an operator has declared that it takes another one's place.
    pub declared_new: bool,
    /// The cloud that its rows were compared with last.
    pub cloud: Option<String>,
}

async fn system_id(client: &Client) -> Result<String> {
    let row = client
        .query_one(SYSTEM, &[])
        .await
        .map_err(|error| Error::postgres("read the server's identity", error))?;
    Ok(row.get(0))
}

/// Writes the outbox's identity where there is none, and what the operator has declared.
///
/// # Errors
/// The source's; an identity error where the outbox came from elsewhere and nothing is declared.
pub(crate) async fn establish(client: &Client, declared: OutboxDeclaration) -> Result<Epoch> {
    let system = system_id(client).await?;
    let failed = |error| Error::postgres("write the outbox's identity", error);
    // Without a configured name, the source is named after server and database: the same database has the same name again
    // after `uninstall` and `init`, and another one another name.
    client
        .execute(
            "insert into cloud_sync.identity (system_id, source_id) \
             select $1, 'db-' || system_identifier || '-' || (select oid from pg_database where datname = current_database()) \
             from pg_control_system() on conflict do nothing",
            &[&system],
        )
        .await
        .map_err(failed)?;
    match declared {
        OutboxDeclaration::Nothing => {}
        OutboxDeclaration::Same => {
            client
                .execute("update cloud_sync.identity set system_id = $1", &[&system])
                .await
                .map_err(failed)?;
        }
        OutboxDeclaration::NewEpoch => {
            // The transaction numbers of a restored outbox are another server's: its touches cannot be ordered here. So every
            // entity is compared. A segment that an open transaction has written to is waited for, but no writer waits behind
            // that: it is tried again.
            super::install::with_lock(
                client,
                "empty the outbox",
                "begin; set local lock_timeout = '2s'; \
                 do $$ declare name text; begin for name in select inhrelid::regclass::text from pg_catalog.pg_inherits \
                    where inhparent = 'cloud_sync.outbox'::regclass loop execute 'truncate only ' || name; end loop; end $$; \
                 truncate cloud_sync.parked_key, cloud_sync.unanswered; \
                 delete from cloud_sync.checkpoint; delete from cloud_sync.backfill; delete from cloud_sync.term_nonce; \
                 update cloud_sync.entity set parked = null, gap = 'the outbox was declared a new one', gap_seen = clock_timestamp(); \
                 commit",
            )
            .await?;
            client
                .execute(
                    "update cloud_sync.identity set epoch = epoch + 1, epoch_settled = false, declared_new = true, \
                     outbox_id = gen_random_uuid(), system_id = $1",
                    &[&system],
                )
                .await
                .map_err(failed)?;
        }
    }
    let stored = read_stored(client, None).await?;
    check(&stored.identity.system_id, &system)?;
    Ok(stored.identity.epoch)
}

async fn read_stored(client: &Client, source_id: Option<&str>) -> Result<StoredIdentity> {
    let row = client
        .query_opt(
            "select outbox_id::text, system_id, epoch, epoch_settled, declared_new, cloud, source_id from cloud_sync.identity",
            &[],
        )
        .await
        .map_err(|error| Error::postgres("read the outbox's identity", error))?
        .ok_or_else(not_installed)?;
    Ok(StoredIdentity {
        identity: Identity {
            source_id: source_id.map_or_else(|| row.get(6), str::to_owned),
            outbox_id: row.get(0),
            system_id: row.get(1),
            epoch: Epoch(row.get(2)),
        },
        settled: row.get(3),
        declared_new: row.get(4),
        cloud: row.get(5),
    })
}

fn check(stored: &str, actual: &str) -> Result<()> {
    if stored == actual {
        return Ok(());
    }
    Err(Error::new(
        Kind::Identity,
        "use the outbox",
        format!("it was made on another server or database ({stored}), and this is {actual}: a restored or copied dump"),
    )
    .remedy("if this database is the site's database now, run `cloud-sync init --new-epoch` and start the replicator again; after pg_upgrade, which keeps the outbox, run `cloud-sync init --same-outbox`"))
}

/// Reads whose outbox it is, and checks that it is on the server and database that it was made on.
///
/// # Errors
/// The source's; an identity error after a restore elsewhere.
pub async fn stored_identity_of(client: &Client, source_id: Option<&str>) -> Result<Identity> {
    Ok(stored(client, source_id).await?.identity)
}

/// The same, with all that is stored beside it.
///
/// # Errors
/// The source's; an identity error after a restore elsewhere.
pub async fn stored(client: &Client, source_id: Option<&str>) -> Result<StoredIdentity> {
    if !installed(client).await? {
        return Err(not_installed());
    }
    let stored = read_stored(client, source_id).await?;
    check(&stored.identity.system_id, &system_id(client).await?)?;
    Ok(stored)
}

/// Notes the cloud that the rows are compared with from now on. URLs that another one gave do not count: its files are
/// asked for and uploaded again.
///
/// # Errors
/// The source's.
pub(crate) async fn note_cloud(client: &Client, term: i64, cloud: &str, another: bool) -> Result<()> {
    let failed = |error| Error::postgres("note which cloud it is", error);
    client
        .execute(
            "update cloud_sync.identity set cloud = $2 from cloud_sync.hold_term($1) mine",
            &[&term, &cloud],
        )
        .await
        .map_err(failed)?;
    if another {
        client
            .execute(
                "with late as (select path from cloud_sync.media where state = 'uploaded' order by path for no key update) \
                 update cloud_sync.media set state = 'waiting', url = null, hash = null, attempts = 0, next_attempt = now() \
                 where path in (select path from late)",
                &[],
            )
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// The timeline of the server that the session is connected with.
///
/// # Errors
/// The source's; a standby counts as unreachable, as it may be promoted at any moment.
pub async fn timeline(client: &Client) -> Result<String> {
    let row = client
        .query_one(
            "select case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) end",
            &[],
        )
        .await
        .map_err(|error| Error::postgres("read the server's timeline", error))?;
    let timeline: Option<String> = row.get(0);
    timeline.ok_or_else(|| {
        Error::new(
            Kind::SourceUnreachable,
            "replicate from the server that answers",
            "it is a standby",
        )
        .remedy("name the primary in source.database_url, or promote this server; it is tried again")
    })
}

/// Checks that a session takes positions one by one: taken in blocks, those of a row would not rise in commit order.
///
/// # Errors
/// The source's; a configuration error where the sequence was altered.
pub async fn check_sequence(client: &Client) -> Result<()> {
    let row = client
        .query_one(
            "select seqcache = 1 and seqincrement = 1 and not seqcycle from pg_sequence \
             where seqrelid = 'cloud_sync.position'::regclass",
            &[],
        )
        .await
        .map_err(|error| Error::postgres("read the sequence of positions", error))?;
    if row.get(0) {
        return Ok(());
    }
    Err(Error::config(
        "use the sequence cloud_sync.position",
        "it was altered, and may hand positions out in blocks: its cache and its increment must be 1, or a row's older \
         change may overwrite its newer one",
    )
    .remedy(
        "run `alter sequence cloud_sync.position increment 1 cache 1 no cycle`, restart the applications that write, \
         then run `cloud-sync init --new-epoch`",
    ))
}

/// Whether the outbox is there.
///
/// # Errors
/// The source's.
pub async fn installed(client: &Client) -> Result<bool> {
    let row = client
        .query_one("select to_regclass('cloud_sync.entity') is not null", &[])
        .await
        .map_err(|error| Error::postgres("look for the outbox", error))?;
    Ok(row.get(0))
}

/// The error of a database without capture.
pub fn not_installed() -> Error {
    Error::config(
        "read the outbox",
        "capture is not installed in the site's database",
    )
    .remedy("run `cloud-sync init`")
}
