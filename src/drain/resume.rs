//! Where the drain goes on, and whether the database is still the one that the checkpoint was read from.
//!
//! A database may go back to an older state: a base backup is put back in its place, or a standby takes over that lacked
//! the last changes. Its sequence then gives positions again that the cloud has seen with other content, and what comes
//! under them would count as old there. So each start compares: between the mirror, which is part of the database and
//! goes back with it, and the furthest checkpoint that is known outside (the store's, or what this process sent last),
//! the outbox must hold exactly the changes that were read between the two. It is stopped for a person where it does not.
//!
//! A server that starts anew may give transaction numbers again that were never on its disk. The store's checkpoint is
//! then of no use, as its snapshots would take new transactions for old ones; the mirror's are from before.

use tokio_postgres::Client;

use super::Drain;
use crate::change::Position;
use crate::checkpoint::{Checkpoint, Run};
use crate::error::{Error, Kind, Result};
use crate::source::connect::Session;
use crate::source::identity::{self, Identity};
use crate::source::outbox;

impl Drain {
    /// Where to go on: at the later of the store's checkpoint and its mirror.
    ///
    /// Answers the highest position that the cloud can have, where only the cloud can tell whether anything is lost.
    ///
    /// # Errors
    /// The source's; an identity error where the database no longer has all that was accepted or sent.
    pub(super) async fn start(
        &self,
        session: &Session,
        identity: &Identity,
        run: &Run,
    ) -> Result<(Checkpoint, Option<Position>)> {
        let stored = self.store.load()?;
        let mirrored = outbox::mirrored(session, identity).await?;
        let stored = match stored {
            Some(stored) if stored.identity == *identity => Some(stored),
            // The operator declared the outbox a new one: the old checkpoint says nothing about it.
            Some(stored) if stored.identity.epoch < identity.epoch => None,
            Some(stored) => {
                return Err(Error::new(
                    Kind::Identity,
                    "resume from the checkpoint",
                    format!(
                        "the store holds the checkpoint of outbox {} on {} (source {}, epoch {}), and this is outbox {} on {} (source {}, epoch {})",
                        stored.identity.outbox_id,
                        stored.identity.system_id,
                        stored.identity.source_id,
                        stored.identity.epoch,
                        identity.outbox_id,
                        identity.system_id,
                        identity.source_id,
                        identity.epoch,
                    ),
                )
                .remedy("correct source.database_url or store.path; if the database was replaced, run `cloud-sync init --new-epoch`, then `cloud-sync sync --force`, then start the replicator again"));
            }
            None => None,
        };
        let sent = self.pulse.sent().filter(|sent| sent.identity == *identity);
        let beginning = Checkpoint::beginning(identity.clone());
        let base = mirrored.as_ref().unwrap_or(&beginning);
        let furthest = [sent.as_ref(), stored.as_ref()].into_iter().flatten();
        let furthest = furthest
            .max_by_key(|checkpoint| checkpoint.place())
            .unwrap_or(base);
        let mut limit = None;
        if base.place() <= furthest.place()
            && let Some(before) = &furthest.run
        {
            if !outbox::leads_to(session, base, furthest).await? {
                return Err(history_is_lost("changes that were delivered from it are gone"));
            }
            if before.timeline != run.timeline {
                tracing::warn!(
                    from = before.timeline,
                    to = run.timeline,
                    "the site's database was promoted or recovered since; all that was delivered is still there"
                );
                limit = sent.is_none().then_some(furthest.highest);
            }
        }
        let held = stored.is_some();
        let own = stored.filter(|stored| stored.place() >= base.place());
        let taken_over = own.is_none();
        let mut start = match own {
            Some(stored) if stored.run.as_ref().is_none_or(|before| before == run) => stored,
            Some(stored) => {
                tracing::info!(
                    "the site's database server was started anew: resuming from the checkpoint's mirror"
                );
                Checkpoint {
                    term: stored.term,
                    serial: stored.serial,
                    ..mirrored.unwrap_or(beginning)
                }
            }
            None => {
                match &mirrored {
                    Some(mirrored) if held => tracing::warn!(
                        mirrored = mirrored.serial,
                        "the checkpoint store is older than its mirror in the source database: resuming from the mirror"
                    ),
                    Some(mirrored) => tracing::warn!(
                        serial = mirrored.serial,
                        "the checkpoint store is empty: resuming from the mirror in the source database"
                    ),
                    None => {}
                }
                let mirrored = mirrored.unwrap_or(beginning);
                Checkpoint {
                    term: mirrored.term + 1,
                    ..mirrored
                }
            }
        };
        start.run = Some(run.clone());
        if taken_over {
            // Before the first change of the new term is sent, so that no two stores count the same term.
            outbox::mirror(session, &start).await?;
        }
        Ok((start, limit))
    }
}

/// Checks that a further session is with the same run of the same server: what one run shows says nothing of another.
pub(super) async fn same_run(client: &Client, run: &Run) -> Result<()> {
    if identity::run(client).await? == *run {
        return Ok(());
    }
    Err(Error::new(
        Kind::SourceUnreachable,
        "connect to the site's database",
        "another server answers than a moment ago",
    )
    .remedy("it is tried again; source.database_url must lead to one server"))
}

/// The error of a database that went back to an older state.
pub(super) fn history_is_lost(cause: &str) -> Error {
    Error::new(
        Kind::Identity,
        "resume from the checkpoint",
        format!(
            "the site's database was restored from an older state, or a standby took over that had not received \
             everything: {cause}"
        ),
    )
    .remedy("run `cloud-sync init --new-epoch`, then `cloud-sync sync --force`, then start the replicator again")
}
