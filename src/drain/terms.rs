//! Beginning a term with the cloud: whether it is the cloud that the site knows, has what it had accepted,
//! and takes this source's batches.
//!
//! What was lost on either side is noted durably, as a gap of every entity, before the term's first batch is
//! sent.

use super::handshake::CloudAnswer;
use super::send::Sender;
use crate::change::Epoch;
use crate::checkpoint::Version;
use crate::deliver::{CloudInfo, Failure, Numbering};
use crate::error::{Code, Error, Kind, Result};
use crate::source::{drift, identity, kept_files, term};

impl Sender {
    /// Whether the cloud is another one than before, or has less than it had accepted.
    pub(super) fn has_changed(&self, answer: &CloudAnswer) -> bool {
        let cloud = self.cloud_name(&answer.info);
        self.stored.cloud.as_ref().is_some_and(|before| *before != cloud) || self.lacks(answer).is_some()
    }

    /// The batch that the cloud had accepted when it was asked, and has not; `None` if it has all, or does
    /// not say.
    fn lacks(&self, answer: &CloudAnswer) -> Option<Version> {
        if !answer.info.tells_version {
            return None;
        }
        let epoch = self.origin.epoch.0;
        let expected = answer.expected.filter(|version| version.epoch == epoch)?;
        let has = answer.info.version.filter(|version| version.epoch == epoch);
        (has < Some(expected)).then_some(expected)
    }

    /// What distinguishes one cloud from another: its own identity, else its address.
    fn cloud_name(&self, info: &CloudInfo) -> String {
        match &info.receiver {
            Some(receiver) => format!("receiver {receiver}"),
            None => format!("server {}", self.cloud.url()),
        }
    }

    /// Begins a term: from now on batches have its numbers. Everything that was sent before is recorded then.
    ///
    /// # Errors
    /// The source's; an identity error if the cloud knows the source as another database, another machine or
    /// a newer outbox.
    pub(super) async fn begin_term(&mut self) -> std::result::Result<(), Failure> {
        self.wait_until_recorded().await?;
        let answer = self.present_answer().await?;
        let info = &answer.info;
        self.settle_epoch(info).await?;
        let epoch = self.origin.epoch.0;
        if let Some(version) = info.version.filter(|version| version.epoch > epoch) {
            return Err(cloud_is_ahead(version.epoch, epoch).into());
        }
        let has = info.version.filter(|version| version.epoch == epoch);
        self.note_losses(&answer, has).await?;
        let previous = match has {
            Some(version) => Some(self.nonce(version).await?),
            None => None,
        };
        if !info.capabilities.changes && !self.ended_before {
            // A request of the drain before this one may still be on its way, and would win over what is sent
            // now.
            let wait = self.life();
            tracing::info!(
                seconds = wait.as_secs(),
                "waiting until no request of an earlier run can arrive"
            );
            tokio::time::sleep(wait).await;
        }
        let above = has.map_or(0, |version| version.term);
        term::begin(self.session.client(), &self.fence, above, &mut self.handed_on).await?;
        self.ended_before = true;
        self.handshake.note_accepted(self.handed_on.accepted);
        self.promoted = false;
        self.known_nonce = (self.handed_on.term, self.handed_on.nonce.clone());
        let numbering = Numbering::new(self.handed_on.term, self.handed_on.nonce.clone(), previous);
        self.numbering = Some(if info.tells_version {
            numbering.in_order()
        } else {
            numbering
        });
        Ok(())
    }

    /// Notes what the cloud does not have although it should, or has although the site does not.
    async fn note_losses(&mut self, answer: &CloudAnswer, has: Option<Version>) -> Result<()> {
        let client = self.session.client();
        let cloud = self.cloud_name(&answer.info);
        let another = self.stored.cloud.as_ref().is_some_and(|before| *before != cloud);
        let mut why = None;
        let is_older = !another && self.lacks(answer).is_some();
        if another {
            why = Some("it is another cloud than before");
        } else if is_older {
            why = Some("the cloud has less than it had accepted: an older state of it was restored");
        } else if self.promoted && has > self.handed_on.accepted {
            why = Some("the site's database was promoted or recovered, and may lack what was sent before");
        }
        if let Some(why) = why {
            tracing::error!("{why}: every entity is compared with it");
            drift::mark_all(client, why).await?;
            self.handed_on.accepted = None;
            self.handshake.note_accepted(None);
            if is_older {
                // It may lack files too. Those that it has are not sent again.
                kept_files::ask_again(client, None).await?;
                self.state.files.wanted.notify_one();
            }
        }
        if another || self.stored.cloud.is_none() {
            identity::note_cloud(client, self.fence.term(), &cloud, another).await?;
            self.state.files.wanted.notify_one();
            self.stored.cloud = Some(cloud);
        }
        Ok(())
    }

    /// Makes sure that the epoch is above all that the cloud knows of the source, once for each outbox.
    async fn settle_epoch(&mut self, info: &CloudInfo) -> Result<()> {
        if self.stored.settled {
            return Ok(());
        }
        if let Some(version) = info.version {
            if let Some(database) = &info.database
                && *database != self.origin.database
                && !self.stored.declared_new
            {
                return Err(Error::new(
                    Kind::Identity,
                    "deliver to the cloud",
                    format!(
                        "the cloud knows source {} as database {database}, and this is {}: two databases must \
                         not share one source",
                        self.origin.source_id, self.origin.database
                    ),
                )
                .with_code(Code::SharedSource)
                .remedy(
                    "set source.source_id to another name; if this database takes the other one's place, run \
                     `cloud-sync init --new-epoch`",
                ));
            }
            if version.epoch >= self.origin.epoch.0 {
                self.origin.epoch = Epoch(info.highest_epoch.max(version.epoch) + 1);
            }
            let why = "the outbox is a new one, and the cloud has rows of the one before it";
            drift::mark_all(self.session.client(), why).await?;
        } else if info.highest_epoch >= self.origin.epoch.0 {
            self.origin.epoch = Epoch(info.highest_epoch + 1);
        }
        self.handed_on.identity.epoch = self.origin.epoch;
        self.stored.settled = true;
        Ok(())
    }

    /// The nonce of the term that the cloud has.
    async fn nonce(&self, version: Version) -> Result<String> {
        let (term, nonce) = &self.known_nonce;
        if *term == version.term && !nonce.is_empty() {
            return Ok(nonce.clone());
        }
        let known = term::nonce(self.session.client(), version.term).await?;
        known.ok_or_else(|| {
            Error::new(
                Kind::Identity,
                "deliver to the cloud",
                format!(
                    "the cloud has batches of term {}, and this database knows of no such term",
                    version.term
                ),
            )
            .with_code(Code::CopiedSource)
            .remedy(
                "another machine sends as this source, a copy of it; or an older state of this database was \
                 restored. Stop the copy; if this is the site's database now, run `cloud-sync init --new-epoch`",
            )
        })
    }
}

/// The error of a cloud that has a newer outbox of this source.
fn cloud_is_ahead(theirs: i64, ours: i64) -> Error {
    Error::new(
        Kind::Identity,
        "deliver to the cloud",
        format!(
            "the cloud has epoch {theirs} of this source, and the outbox is of epoch {ours}: it is not the outbox \
             that the cloud knows"
        ),
    )
    .remedy("if this is the site's database now, run `cloud-sync init --new-epoch` and start the replicator again")
}
