//! The upload lane: uploads each file that is due, once.
//!
//! [`UploadPool`] uploads several files at a time. At the same time their outcomes are recorded
//! ([`UploadJournal`]), a group at a time: a group is what has ended while the group before it was recorded.
//!
//! Any error ends the round: the lane waits, then opens its session again and asks the database what is due.
//! A file whose outcome was not recorded is uploaded again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::file_upload::FileUploader;
use super::upload_journal::UploadJournal;
use super::upload_pool::UploadPool;
use super::watch::MediaWatch;
use crate::catalogue::Catalogue;
use crate::deliver::{ChangeOrigin, Cloud};
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::retry::Backoff;
use crate::source::file_records;
use crate::source::site_session::SiteSession;
use crate::supervise::{NextRound, Supervisor};

/// What the lane works on.
#[derive(Clone)]
pub struct FileLane {
    /// The site's database.
    pub database_url: SecretString,
    /// The configured source id.
    pub source_id: Option<String>,
    /// What is replicated.
    pub catalogue: Arc<Catalogue>,
    /// The cloud.
    pub cloud: Cloud,
    /// The media root.
    pub root: PathBuf,
    /// How long a file must have been left alone.
    pub settle: Duration,
    /// Whether videos are uploaded.
    pub videos: bool,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Signalled when a row names a new file.
    pub wanted: Arc<Notify>,
}

/// From one session to the next error.
struct FileLaneRound<'a> {
    journal: UploadJournal<'a>,
    pool: UploadPool<'a>,
    watch: &'a MediaWatch,
    /// Signalled when a row names a new file.
    wanted: &'a Notify,
    /// Busy files that the watch saw change: they are looked at once they are no longer busy.
    seen_while_busy: Vec<String>,
    /// Whether the database had no more files that are due.
    all_given: bool,
}

/// How long a call of a file may take after the shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

impl FileLane {
    /// Runs until `shutdown`, through outages of the source and of the cloud, on a thread of its own: a call
    /// of a file that does not return, as on a dead mount, delays files alone. Its thread is abandoned if it
    /// has not returned a moment after `shutdown`.
    ///
    /// # Errors
    /// Only what the operator must repair first: configuration and identity.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        let stop = shutdown.child_token();
        let _stop_on_drop = stop.clone().drop_guard();
        let runtime = tokio::runtime::Handle::current();
        let lane = tokio::task::spawn_blocking(move || runtime.block_on(self.follow(stop)));
        let grace = async {
            shutdown.cancelled().await;
            tokio::time::sleep(SHUTDOWN_GRACE).await;
        };
        tokio::select! {
            ended = lane => ended.map_err(|error| Error::local("upload \
                 files", std::io::Error::other(error)))?,
            () = grace => {
                tracing::warn!("a call of a file in the media root does not return: its thread is abandoned");
                Ok(())
            }
        }
    }

    async fn follow(&self, shutdown: CancellationToken) -> Result<()> {
        let supervisor = Supervisor::new(
            "uploads",
            Backoff::within(Duration::from_millis(200), Duration::from_secs(30)),
        );
        let round = async || {
            // What ended the round before may have ended its watch too, or the root may exist now.
            let watch = self.start_watch();
            let mut lane = tokio::select! {
                () = shutdown.cancelled() => return Ok(NextRound::Never),
                lane = self.open(&watch) => lane?,
            };
            supervisor.recovered();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => Ok(NextRound::Never),
                ended = lane.run() => ended.map(|()| NextRound::Never),
            }
        };
        supervisor.run(&shutdown, |_| {}, round).await
    }

    fn start_watch(&self) -> MediaWatch {
        let (watch, error) = MediaWatch::start(&self.root);
        if let Some(error) = error {
            tracing::warn!(
                root = %self.root.display(),
                error = %error,
                "the media root cannot be watched: files are looked for every minute; \
                 check media.root, and fs.inotify.max_user_watches"
            );
        }
        watch
    }

    async fn open<'a>(&'a self, watch: &'a MediaWatch) -> Result<FileLaneRound<'a>> {
        let site = SiteSession::open(
            &self.database_url,
            "media",
            self.source_id.as_deref(),
            &self.catalogue,
        )
        .await?;
        let origin = ChangeOrigin::from(&site.identity);
        let capabilities = self.cloud.handshake(&origin).await?.capabilities;
        Ok(FileLaneRound {
            journal: UploadJournal {
                session: site.session,
                attached: site.attached,
                catalogue: &self.catalogue,
                root: &self.root,
                metrics: &self.metrics,
            },
            pool: UploadPool::new(FileUploader {
                cloud: &self.cloud,
                root: &self.root,
                settle: self.settle,
                videos: self.videos,
                metrics: &self.metrics,
                watch,
                capabilities,
                origin: Arc::new(origin),
            }),
            watch,
            wanted: &self.wanted,
            seen_while_busy: Vec::new(),
            all_given: false,
        })
    }
}

impl FileLaneRound<'_> {
    async fn run(&mut self) -> Result<()> {
        file_records::make_all_due(self.journal.session.client(), false).await?;
        self.journal.check_uploaded().await?;
        loop {
            let outcomes = self.pool.take_outcomes();
            if !outcomes.is_empty() {
                self.pool.while_uploading(self.journal.record(&outcomes)).await?;
                self.pool.release(&outcomes);
                // What was seen of these files while they were busy is looked at now.
                self.all_given &= self.seen_while_busy.is_empty();
                continue;
            }
            if let Some(error) = self.pool.take_error() {
                return Err(error);
            }
            let room = self.pool.room();
            if !self.all_given && room > 0 {
                self.give_due(room).await?;
                continue;
            }
            self.wait().await?;
        }
    }

    /// Gives the pool files that are due, at most `room`.
    async fn give_due(&mut self, room: usize) -> Result<()> {
        self.look_at_seen().await?;
        self.pool.while_uploading(self.journal.count()).await?;
        let busy: Vec<String> = self.pool.busy().into_iter().map(str::to_owned).collect();
        let busy: Vec<&str> = busy.iter().map(String::as_str).collect();
        let due = file_records::due(self.journal.session.client(), &busy, room as i64);
        let due = self.pool.while_uploading(due).await?;
        self.all_given = due.len() < room;
        self.pool.give(due);
        Ok(())
    }

    /// Waits until an upload ends or, if no more files are due, until more may be.
    async fn wait(&mut self) -> Result<()> {
        if !self.all_given {
            self.pool.next().await;
            return Ok(());
        }
        self.journal.count().await?;
        let seconds = file_records::next_due(self.journal.session.client(), &self.pool.busy()).await?;
        let seconds = seconds.unwrap_or(60.0).clamp(0.05, 60.0);
        tokio::select! {
            biased;
            () = self.journal.session.closed() => {
                return Err(Error::new(
                    Kind::SourceUnreachable,
                    "wait for files",
                    "the connection was closed",
                ));
            }
            () = self.pool.next() => return Ok(()),
            () = self.wanted.notified() => {}
            () = self.watch.changed() => {}
            () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => {}
        }
        self.all_given = false;
        Ok(())
    }

    /// Makes files due that the watch saw appear or change.
    async fn look_at_seen(&mut self) -> Result<()> {
        let seen = self.watch.take();
        let journal = &self.journal;
        if seen.lost {
            let all = async {
                file_records::make_all_due(journal.session.client(), false).await?;
                journal.check_uploaded().await
            };
            self.pool.while_uploading(all).await?;
        }
        self.seen_while_busy.extend(seen.paths);
        // The outcome of a busy file is not recorded yet: whether the file has changed since is seen
        // afterwards.
        let (busy, idle): (Vec<_>, Vec<_>) = std::mem::take(&mut self.seen_while_busy)
            .into_iter()
            .partition(|path| self.pool.is_busy(path));
        self.seen_while_busy = busy;
        self.seen_while_busy.sort_unstable();
        self.seen_while_busy.dedup();
        let look = async {
            for paths in idle.chunks(1_000) {
                let known = file_records::known(journal.session.client(), paths).await?;
                journal.make_changed_due(known).await?;
            }
            Ok(())
        };
        self.pool.while_uploading(look).await
    }
}
