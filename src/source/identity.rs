//! Whose outbox it is: a checkpoint belongs to one database server, one database and one outbox.
//!
//! The outbox remembers the server's `system_identifier`, and the database's number and name. A dump restored elsewhere, or under the
//! same name, carries the outbox but not the server: capture would go on under positions that the cloud may have seen
//! otherwise, so that the replicator stops until an operator says that it is a new outbox (`init --new-epoch`).

use tokio_postgres::Client;

use crate::change::Epoch;
pub use crate::checkpoint::Identity;
use crate::checkpoint::Run;
use crate::error::{Error, Kind, Result};

// The database's number too: one that was dropped and created anew under the same name is another one.
const SYSTEM: &str = "select system_identifier || '/' || (select oid from pg_database where datname = current_database()) \
     || '/' || current_database() from pg_control_system()";

async fn system_id(client: &Client) -> Result<String> {
    let row = client
        .query_one(SYSTEM, &[])
        .await
        .map_err(|error| Error::postgres("read the server's identity", error))?;
    Ok(row.get(0))
}

/// Writes the outbox's identity where there is none, and declares it new where `new_epoch` says so.
///
/// # Errors
/// The source's; an identity error where the outbox came from elsewhere and `new_epoch` is not set.
pub(crate) async fn establish(client: &Client, new_epoch: bool) -> Result<Epoch> {
    let system = system_id(client).await?;
    let failed = |error| Error::postgres("write the outbox's identity", error);
    client
        .execute(
            "insert into cloud_sync.identity (system_id) values ($1) on conflict do nothing",
            &[&system],
        )
        .await
        .map_err(failed)?;
    if new_epoch {
        // The transaction numbers of a restored outbox are another server's: its changes cannot be ordered here. What
        // they said is in the tables, and sync compares those.
        client
            .batch_execute(
                "truncate only cloud_sync.outbox_0, cloud_sync.outbox_1, cloud_sync.outbox_2, cloud_sync.outbox_3; \
                 delete from cloud_sync.checkpoint; delete from cloud_sync.backfill",
            )
            .await
            .map_err(failed)?;
        client
            .execute(
                "update cloud_sync.identity set epoch = epoch + 1, outbox_id = gen_random_uuid(), system_id = $1",
                &[&system],
            )
            .await
            .map_err(failed)?;
    }
    let identity = read_stored(client).await?;
    check(&identity.1, &system)?;
    Ok(identity.2)
}

async fn read_stored(client: &Client) -> Result<(String, String, Epoch)> {
    let row = client
        .query_opt(
            "select outbox_id::text, system_id, epoch from cloud_sync.identity",
            &[],
        )
        .await
        .map_err(|error| Error::postgres("read the outbox's identity", error))?
        .ok_or_else(not_installed)?;
    Ok((row.get(0), row.get(1), Epoch(row.get(2))))
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
    .remedy("if this database is the site's database now, run `cloud-sync init --new-epoch`, then `cloud-sync sync --force`, then start the replicator again"))
}

/// Reads whose outbox it is, and checks that it is on the server and database that it was made on.
///
/// # Errors
/// The source's; an identity error after a restore elsewhere.
pub async fn read(client: &Client, source_id: Option<&str>) -> Result<Identity> {
    if !installed(client).await? {
        return Err(not_installed());
    }
    let (outbox_id, stored, epoch) = read_stored(client).await?;
    check(&stored, &system_id(client).await?)?;
    Ok(Identity {
        source_id: source_id.unwrap_or(&outbox_id).to_owned(),
        outbox_id,
        system_id: stored,
        epoch,
    })
}

/// The run of the server that the session is connected with.
///
/// # Errors
/// The source's; a standby counts as unreachable, as it may be promoted at any moment.
pub async fn run(client: &Client) -> Result<Run> {
    let row = client
        .query_one(
            "select case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) end, \
             (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint",
            &[],
        )
        .await
        .map_err(|error| Error::postgres("read the server's timeline", error))?;
    let timeline: Option<String> = row.get(0);
    let timeline = timeline.ok_or_else(|| {
        Error::new(
            Kind::SourceUnreachable,
            "replicate from the server that answers",
            "it is a standby",
        )
        .remedy("name the primary in source.database_url, or promote this server; it is tried again")
    })?;
    Ok(Run {
        timeline,
        started_at: row.get(1),
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
         then run `cloud-sync init --new-epoch` and `cloud-sync sync --force`",
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
