//! Where the drain goes on, and whether the database or the cloud has gone back since.
//!
//! The store in a folder of this machine is exact, batch by batch. It counts while nothing says that another
//! place is right: its incarnation is the server's, so that the transaction numbers of its snapshots still
//! mean the same transactions, and its term is the last that was begun, so that no other store has gone on
//! from there. Else the mirror counts, which is in the site's database and goes back with it.
//!
//! A mirror below the one that the store knows to have been written means that the database itself has gone
//! back: a backup was put back in its place, or a standby took over that lacked the last changes. A cloud
//! that has less than it had accepted has gone back too. In both cases every entity is compared with the
//! cloud, removal included: that it is to be compared is noted in the site's database before anything is
//! sent. Another incarnation alone means that the server has recovered: entities with unlogged tables are
//! compared then, since PostgreSQL has emptied these, and no trigger has fired.

use tokio_postgres::Client;

use super::Drain;
use crate::checkpoint::{Checkpoint, Version};
use crate::deliver::ChangeOrigin;
use crate::error::{Error, Kind, Result};
use crate::source::connect::Session;
use crate::source::identity::{self, Identity, StoredIdentity};
use crate::source::term::{self, Fence, TermAtOpen};
use crate::source::{drift, outbox};

/// How a drain begins.
pub(super) struct DrainStart {
    pub(super) checkpoint: Checkpoint,
    /// What the site's database has of it.
    pub(super) mirror: Option<Checkpoint>,
    /// The furthest batch that is known outside the database to have been accepted.
    pub(super) accepted: Option<Version>,
    /// Nonces of terms that the store knows and the database may have lost.
    pub(super) nonce: (i64, String),
    pub(super) fence: Fence,
    /// Whether the drain before this one ended in order.
    pub(super) ended: bool,
    /// Whether the server was promoted or recovered to another timeline since the checkpoint.
    pub(super) promoted: bool,
    pub(super) stored: StoredIdentity,
}

impl DrainStart {
    /// The source, as the cloud knows it.
    pub(super) fn origin(&self) -> ChangeOrigin {
        ChangeOrigin::from(&self.checkpoint.identity)
    }

    /// The furthest batch that the cloud is known to have accepted.
    pub(super) fn known_accepted(&self) -> Option<Version> {
        self.accepted.max(self.checkpoint.accepted)
    }
}

impl Drain {
    /// Where to go on.
    ///
    /// # Errors
    /// The source's; an identity error if the store belongs to another outbox.
    pub(super) async fn start(&self, session: &Session) -> Result<DrainStart> {
        let client = session.client();
        let stored_identity = identity::stored(client, self.source_id.as_deref()).await?;
        let identity = &stored_identity.identity;
        let timeline = identity::timeline(client).await?;
        let incarnation = term::incarnation(client).await?;
        let TermAtOpen { fence, ended } = term::term_at_open(client).await?;
        let mirrored = outbox::mirrored(session, identity).await?;
        let stored = self.of_this_outbox(identity)?;
        let mirror_place = mirrored.as_ref().map_or((0, 0), Checkpoint::order);
        if let Some(stored) = &stored
            && mirror_place < stored.mirrored
        {
            let why = "the site's database has gone back to an older state: a backup was restored, or a standby took over that \
                       had not received everything";
            tracing::error!("{why}; every entity is compared with the cloud");
            drift::mark_all(client, why).await?;
        }
        let (nonce, accepted) = stored.as_ref().map_or_else(
            || ((0, String::new()), None),
            |stored| ((stored.term, stored.nonce.clone()), stored.accepted),
        );
        let mirror = mirrored.clone();
        let mirrored = mirrored.unwrap_or_else(|| Checkpoint::beginning(identity.clone()));
        let promoted = !mirrored.timeline.is_empty() && mirrored.timeline != timeline;
        let held = stored.is_some();
        let exact = stored.filter(|stored| {
            stored.incarnation == incarnation && stored.term == fence.term() && stored.order() >= mirror_place
        });
        let accepted = accepted.max(mirrored.accepted);
        let mut checkpoint = match exact {
            Some(stored) => stored,
            None => {
                if mirrored.serial > 0 {
                    tracing::warn!(
                        serial = mirrored.serial,
                        "{}: resuming from the mirror in the source database",
                        if held {
                            "the checkpoint store is of another run of the server, or another replicator has drained since"
                        } else {
                            "the checkpoint store is empty"
                        }
                    );
                }
                mirrored
            }
        };
        // Until a checkpoint names the new incarnation, each start notes it again.
        if !checkpoint.incarnation.is_empty() && checkpoint.incarnation != incarnation {
            drift::mark_unlogged(
                client,
                "the server has recovered from a crash, or was promoted, and its unlogged tables are empty",
            )
            .await?;
        }
        checkpoint.incarnation = incarnation;
        checkpoint.timeline = timeline;
        Ok(DrainStart {
            checkpoint,
            mirror,
            accepted,
            nonce,
            fence,
            ended,
            promoted,
            stored: stored_identity,
        })
    }

    /// The store's checkpoint; `None` if it belongs to an earlier epoch of this outbox.
    fn of_this_outbox(&self, identity: &Identity) -> Result<Option<Checkpoint>> {
        let Some(stored) = self.store.load()? else {
            return Ok(None);
        };
        let theirs = &stored.identity;
        if theirs == identity {
            return Ok(Some(stored));
        }
        // The operator declared the outbox a new one, or its epoch was settled: the old checkpoint says
        // nothing about it.
        if theirs.source_id == identity.source_id && theirs.epoch < identity.epoch {
            return Ok(None);
        }
        // Capture was installed again in the same database: this outbox has another one's place.
        if theirs.source_id == identity.source_id
            && theirs.database() == identity.database()
            && theirs.outbox_id != identity.outbox_id
        {
            return Ok(None);
        }
        // `init --same-outbox` says that this is the same outbox on another server.
        if theirs.outbox_id == identity.outbox_id && theirs.source_id == identity.source_id {
            let mut stored = stored;
            stored.identity = identity.clone();
            return Ok(Some(stored));
        }
        Err(Error::new(
            Kind::Identity,
            "resume from the checkpoint",
            format!(
                "the store holds the checkpoint of outbox {} on {} (source {}, epoch {}), and this is outbox {} on {} (source {}, epoch {})",
                theirs.outbox_id,
                theirs.system_id,
                theirs.source_id,
                theirs.epoch,
                identity.outbox_id,
                identity.system_id,
                identity.source_id,
                identity.epoch,
            ),
        )
        .remedy(
            "correct source.database_url or store.path; if capture was installed again in this database, or it takes the \
             other one's place, remove the store's folder, run `cloud-sync init --new-epoch` and start the replicator again",
        ))
    }
}

/// Checks that a further session is with the same run of the same server: what one run shows says nothing of
/// another.
pub(super) async fn same_server(client: &Client, checkpoint: &Checkpoint) -> Result<()> {
    if identity::timeline(client).await? == checkpoint.timeline
        && term::incarnation(client).await? == checkpoint.incarnation
    {
        return Ok(());
    }
    Err(Error::new(
        Kind::SourceUnreachable,
        "connect to the site's database",
        "another server answers than a moment ago",
    )
    .remedy("it is tried again; source.database_url must lead to one server"))
}
