//! Whose outbox it is: a checkpoint belongs to one database server, one database and one outbox.
//!
//! The outbox remembers the server's `system_identifier`, and the database's number and name. A dump restored
//! elsewhere, or under the same name, carries the outbox but not the server: capture would continue with
//! positions that the cloud may know from other changes. So the replicator stops until an operator declares
//! the outbox a new one (`init --new-epoch`).

use tokio_postgres::Client;

use super::kept_files;
use crate::change::Epoch;
pub use crate::checkpoint::Identity;
use crate::error::{Error, Kind, Result};
use crate::sql_template::statement;

/// What an operator says about the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutboxDeclaration {
    /// Nothing: it must be on the server and database that it was made on.
    #[default]
    Nothing,
    /// It is a new one that replaces another: after a restore.
    NewEpoch,
    /// It is the same one on another server: after `pg_upgrade`, which keeps transaction numbers and tables.
    Same,
}

/// The outbox's identity as it is stored.
#[derive(Debug, Clone)]
pub struct StoredIdentity {
    /// Whose outbox.
    pub identity: Identity,
    /// Whether its epoch is known to be above all that the cloud knows of the source.
    pub settled: bool,
    /// Whether an operator has declared that it replaces another one.
    pub declared_new: bool,
    /// The cloud that its rows were compared with last.
    pub cloud: Option<String>,
}

async fn system_id(client: &Client) -> Result<String> {
    let row = client
        .query_one(statement!("identity", "system_id"), &[])
        .await
        .map_err(|error| Error::postgres("read the server's identity", error))?;
    Ok(row.get(0))
}

/// Writes the outbox's identity if there is none, and what the operator has declared.
///
/// # Errors
/// The source's; an identity error if the outbox came from elsewhere and nothing is declared.
pub(crate) async fn establish(client: &Client, declared: OutboxDeclaration) -> Result<Epoch> {
    let system = system_id(client).await?;
    let failed = |error| Error::postgres("write the outbox's identity", error);
    client
        .execute(statement!("identity", "create"), &[&system])
        .await
        .map_err(failed)?;
    match declared {
        OutboxDeclaration::Nothing => {}
        OutboxDeclaration::Same => {
            client
                .execute(statement!("identity", "declare_same"), &[&system])
                .await
                .map_err(failed)?;
        }
        OutboxDeclaration::NewEpoch => {
            super::install::with_lock(client, "empty the outbox", statement!("identity", "empty_outbox"))
                .await?;
            client
                .execute(statement!("identity", "declare_new"), &[&system])
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
        .query_opt(statement!("identity", "stored"), &[])
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
        format!(
            "it was made on another server or database ({stored}), and this is {actual}: a restored or \
             copied dump"
        ),
    )
    .remedy(
        "if this database is the site's database now, run `cloud-sync init --new-epoch` and start the \
         replicator again; after pg_upgrade, which keeps the outbox, run `cloud-sync init --same-outbox`",
    ))
}

/// Reads whose outbox it is, and checks that it is on the server and database that it was made on.
///
/// # Errors
/// The source's; an identity error after a restore elsewhere.
pub async fn stored_identity_of(client: &Client, source_id: Option<&str>) -> Result<Identity> {
    Ok(stored(client, source_id).await?.identity)
}

/// Reads the stored identity, and checks it in the same way.
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

/// Notes the cloud that the rows are compared with from now on. If it is another one, the URLs that the one
/// before gave do not count: files are uploaded again.
///
/// # Errors
/// The source's.
pub(crate) async fn note_cloud(client: &Client, term: i64, cloud: &str, another: bool) -> Result<()> {
    let failed = |error| Error::postgres("note which cloud it is", error);
    client
        .execute(statement!("identity", "note_cloud"), &[&term, &cloud])
        .await
        .map_err(failed)?;
    if another {
        kept_files::upload_all_again(client).await?;
    }
    Ok(())
}

/// The timeline of the session's server.
///
/// # Errors
/// The source's; a standby counts as unreachable, as it may be promoted at any moment.
pub async fn timeline(client: &Client) -> Result<String> {
    let row = client
        .query_one(statement!("identity", "timeline"), &[])
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

/// Checks that a session takes positions one by one: if it took blocks, a row's positions would not rise in
/// commit order.
///
/// # Errors
/// The source's; a configuration error if the sequence was altered.
pub async fn check_sequence(client: &Client) -> Result<()> {
    let row = client
        .query_one(statement!("identity", "sequence_is_sound"), &[])
        .await
        .map_err(|error| Error::postgres("read the sequence of positions", error))?;
    if row.get(0) {
        return Ok(());
    }
    Err(Error::config(
        "use the sequence cloud_sync.position",
        "it was altered, and may hand positions out in blocks: its cache and its increment must be 1, or a \
         row's older change may overwrite its newer one",
    )
    .remedy(
        "run `alter sequence cloud_sync.position increment 1 cache 1 no cycle`, restart the applications \
         that write, then run `cloud-sync init --new-epoch`",
    ))
}

/// Whether the outbox exists.
///
/// # Errors
/// The source's.
pub async fn installed(client: &Client) -> Result<bool> {
    let row = client
        .query_one(statement!("identity", "is_installed"), &[])
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
