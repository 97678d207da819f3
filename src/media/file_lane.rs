//! The file lane: uploads each file that is due, once.
//!
//! [`UploadPool`] uploads several files at a time. At the same time their outcomes are recorded
//! ([`UploadJournal`]), a group at a time: a group is what has ended while the group before it was recorded.
//! In between, the rescan compares a page of files with their records ([`Rescan`]).
//!
//! Any error ends the round: the lane waits, then opens its session again and asks the database what is due.
//! A file whose outcome was not recorded is uploaded again. The rescan goes on where it was.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::file_lane_signals::FileLaneSignals;
use super::file_outcome::UploadStop;
use super::file_upload::FileUploader;
use super::readiness::Readiness;
use super::rescan::Rescan;
use super::root::MediaRoot;
use super::upload_journal::UploadJournal;
use super::upload_pool::UploadPool;
use super::upload_progress::UploadProgress;
use super::watch::{MediaWatch, silent_file_system};
use crate::catalogue::Catalogue;
use crate::deliver::{ChangeOrigin, Cloud, ObjectStorage};
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::retry::{Backoff, waits};
use crate::source::file_records::{self, DueLimits};
use crate::source::kept_files;
use crate::source::site_session::SiteSession;
use crate::source::traffic;
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
    /// Where files go instead of through the cloud's API.
    pub storage: Option<ObjectStorage>,
    /// The media root.
    pub root: MediaRoot,
    /// How long a file must have been left alone.
    pub settle: Duration,
    /// The time between two rescans; `None` if it follows from the number of files.
    pub rescan: Option<Duration>,
    /// Whether videos are uploaded.
    pub videos: bool,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What it and the rest of the program tell each other.
    pub state: Arc<FileLaneSignals>,
}

/// What outlasts a round.
struct LaneMemory {
    /// `None` before the first round.
    watch: Option<Arc<MediaWatch>>,
    rescan: Rescan,
    readiness: Arc<Readiness>,
    progress: Arc<UploadProgress>,
    /// While the cloud takes no file.
    backoff: Backoff,
    /// Whether what waits was made due at the start.
    has_begun: bool,
}

/// From one session to the next error.
struct FileLaneRound<'a> {
    /// Hears when what failed before works.
    supervisor: &'a Supervisor,
    journal: UploadJournal<'a>,
    pool: UploadPool<'a>,
    progress: &'a UploadProgress,
    watch: &'a Arc<MediaWatch>,
    rescan: &'a mut Rescan,
    backoff: &'a mut Backoff,
    has_begun: &'a mut bool,
    lane: &'a FileLane,
    /// Busy files that the watch saw change: they are looked at once they are no longer busy.
    seen_while_busy: Vec<String>,
    /// Whether the database had no more files that are due.
    all_given: bool,
    /// Whether a page was looked at since files were given.
    was_rescanned: bool,
    /// When the files were counted last.
    counted_at: Option<Instant>,
    /// When what left was recorded last.
    traffic_recorded_at: Instant,
}

/// How long a call of a file may take after the shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// How often files are counted while they are given: of many files that takes a while.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// How often what left is recorded, while there is a budget.
const RECORD_TRAFFIC_EVERY: Duration = Duration::from_secs(2);

/// The longest time without a question what is due.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

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
        let supervisor = Supervisor::new("uploads", Backoff::of(waits::FILE_LANE));
        let memory = tokio::sync::Mutex::new(LaneMemory {
            watch: None,
            rescan: Rescan::new(self.rescan),
            readiness: Arc::new(Readiness::new(self.settle)),
            progress: Arc::default(),
            backoff: Backoff::of(waits::FILE_LANE),
            has_begun: false,
        });
        let round = async || {
            let mut memory = memory.lock().await;
            let LaneMemory {
                watch,
                rescan,
                readiness,
                progress,
                backoff,
                has_begun,
            } = &mut *memory;
            // The root may exist now, or be another folder.
            let current = watch.take().filter(|watch| watch.is_current(&self.root.path));
            let watch = &*watch.insert(current.unwrap_or_else(|| self.start_watch()));
            let (journal, uploader) = tokio::select! {
                () = shutdown.cancelled() => return Ok(NextRound::Never),
                opened = self.open(watch, readiness, progress) => opened?,
            };
            let mut lane = FileLaneRound {
                supervisor: &supervisor,
                journal,
                pool: UploadPool::new(uploader),
                progress,
                watch,
                rescan,
                backoff,
                has_begun,
                lane: self,
                seen_while_busy: Vec::new(),
                all_given: false,
                was_rescanned: false,
                counted_at: None,
                traffic_recorded_at: Instant::now(),
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => Ok(NextRound::Never),
                ended = lane.run() => ended,
            }
        };
        supervisor.run(&shutdown, |_| {}, round).await
    }

    fn start_watch(&self) -> Arc<MediaWatch> {
        let watch = MediaWatch::start(&self.root.path);
        self.publish_problem(&watch);
        Arc::new(watch)
    }

    /// Publishes why the watch does not tell of every change, if that is another reason than before.
    fn publish_problem(&self, watch: &MediaWatch) {
        let silent = || {
            silent_file_system(&self.root.path).map(|kind| {
                format!(
                    "the media root is on a file system ({kind}) that does not tell what other machines write"
                )
            })
        };
        let (before, now) = (self.state.watch_problem(), watch.problem().or_else(silent));
        if before == now {
            return;
        }
        match (&before, &now) {
            // The number of folders may change often.
            (None, Some(problem)) => tracing::warn!(
                root = %self.root.path.display(),
                "{problem}; such changes are found by the rescan: see media.rescan"
            ),
            (Some(_), None) => {
                tracing::info!(root = %self.root.path.display(), "every folder is watched again")
            }
            _ => {}
        }
        self.state.set_watch_problem(now);
    }

    async fn open<'a>(
        &'a self,
        watch: &'a MediaWatch,
        readiness: &'a Readiness,
        progress: &'a UploadProgress,
    ) -> Result<(UploadJournal<'a>, FileUploader<'a>)> {
        let site = SiteSession::open(
            &self.database_url,
            "media",
            self.source_id.as_deref(),
            &self.catalogue,
        )
        .await?;
        let origin = ChangeOrigin::from(&site.identity);
        let capabilities = self.cloud.handshake(&origin).await?.capabilities;
        let journal = UploadJournal {
            session: site.session,
            attached: site.attached,
            catalogue: &self.catalogue,
            root: &self.root,
            metrics: &self.metrics,
        };
        let uploader = FileUploader {
            cloud: &self.cloud,
            storage: self.storage.as_ref(),
            root: &self.root,
            readiness,
            videos: self.videos,
            catalogue: &self.catalogue,
            metrics: &self.metrics,
            state: &self.state,
            watch,
            capabilities,
            origin: Arc::new(origin),
            progress,
        };
        Ok((journal, uploader))
    }
}

impl FileLaneRound<'_> {
    async fn run(&mut self) -> Result<NextRound> {
        if !*self.has_begun {
            file_records::make_all_due(self.journal.session.client(), false).await?;
            *self.has_begun = true;
        }
        let bandwidth = &self.lane.state.bandwidth;
        let (day, month) = traffic::read(self.journal.session.client(), bandwidth.today()).await?;
        bandwidth.recorded_before(day, month);
        loop {
            self.record_traffic().await?;
            let notes = self.progress.notes();
            if !notes.is_empty() {
                let noted = self.journal.note_progress(&notes);
                self.pool.while_uploading(noted).await?;
                self.progress.noted(&notes);
            }
            let outcomes = self.pool.take_outcomes();
            if !outcomes.is_empty() {
                self.pool.while_uploading(self.journal.record(&outcomes)).await?;
                let ended = outcomes.iter().filter(|outcome| outcome.ends_upload());
                ended.for_each(|outcome| self.progress.ended(&outcome.path));
                self.pool.release(&outcomes);
                self.lane.state.note_progress(outcomes.len() as u64);
                if outcomes.iter().any(|outcome| outcome.is_uploaded()) {
                    self.backoff.reset();
                }
                // What was seen of these files while they were busy is looked at now; and one that was
                // deferred may be due already.
                self.all_given = false;
                continue;
            }
            let is_closed = self.lane.state.bandwidth.is_closed();
            if self.lane.state.bandwidth.is_off() {
                // What is on its way is given up: a request that waits for hours would be.
                self.pool.give_up();
            } else if is_closed {
                self.pool.give_up_queued();
            }
            if let Some(stop) = self.pool.take_stop() {
                return self.stopped(stop);
            }
            let room = self.pool.room().filter(|_| !is_closed && !self.all_given);
            // A page, then files that are due: neither waits for the end of the other.
            if self.rescan_is_due() && !(self.was_rescanned && room.is_some()) {
                if !self.watch.is_current(&self.lane.root.path) && self.lane.root.path.exists() {
                    // The next round watches the folder that is the root now.
                    return Ok(NextRound::After(Duration::ZERO));
                }
                self.rescan_page().await?;
                self.was_rescanned = true;
                continue;
            }
            self.was_rescanned = false;
            if let Some(room) = room {
                self.give_due(room).await?;
                continue;
            }
            if is_closed {
                self.look_at_seen().await?;
                self.supervisor.recovered();
            }
            self.wait(is_closed).await?;
        }
    }

    /// Records what left, if there is a budget: a restart goes on counting.
    async fn record_traffic(&mut self) -> Result<()> {
        if self.traffic_recorded_at.elapsed() < RECORD_TRAFFIC_EVERY {
            return Ok(());
        }
        self.traffic_recorded_at = Instant::now();
        let bandwidth = &self.lane.state.bandwidth;
        let unrecorded = bandwidth.unrecorded();
        if !unrecorded.is_empty() {
            let noted = traffic::note(self.journal.session.client(), &unrecorded);
            self.pool.while_uploading(noted).await?;
            bandwidth.note_recorded(&unrecorded);
        }
        Ok(())
    }

    /// What comes after the cloud took no file: what it asks for, or a pause that grows.
    fn stopped(&mut self, stop: UploadStop) -> Result<NextRound> {
        if !stop.is_about_files {
            return Err(stop.error);
        }
        let pause = self.backoff.next(stop.retry_after);
        tracing::warn!(seconds = pause.as_secs(), "files wait: {}", stop.error);
        Ok(NextRound::After(pause))
    }

    /// Whether a page is to be looked at: by the clock, or since somebody asks for a rescan.
    fn rescan_is_due(&mut self) -> bool {
        let requested = self.lane.state.requested();
        if requested > self.rescan.request() {
            self.rescan.begin_now(requested);
        }
        self.rescan.next_at() <= Instant::now()
    }

    async fn rescan_page(&mut self) -> Result<()> {
        let after = self.rescan.page_begins();
        if after.is_empty() && self.watch.lost_folders() {
            let watch = self.watch.clone();
            let watched = tokio::task::spawn_blocking(move || watch.watch_again());
            // A thread that panics has left the folders as they were.
            let _ = self.pool.while_uploading(watched).await;
            self.lane.publish_problem(self.watch);
        }
        let began = Instant::now();
        let page = self.journal.rescan_page(&after);
        let (last, files) = self.pool.while_uploading(page).await?;
        self.all_given = false;
        if let Some(request) = self.rescan.page_done(last, files, began.elapsed()) {
            self.lane.state.note_answered(request);
            let forget = file_records::forget_unnamed(self.journal.session.client());
            let forgotten = self.pool.while_uploading(forget).await?;
            if forgotten > 0 {
                tracing::info!(files = forgotten, "forgot files that no row names any more");
            }
            if self.pool.can_ask() {
                self.pool
                    .while_uploading(kept_files::renew_urls(self.journal.session.client()))
                    .await?;
            }
        }
        Ok(())
    }

    /// Gives the pool files that are due, as many as it has room for.
    async fn give_due(&mut self, room: DueLimits) -> Result<()> {
        self.look_at_seen().await?;
        if self.counted_at.is_none_or(|at| at.elapsed() >= COUNT_EVERY) {
            self.count().await?;
        }
        let busy = self.pool.busy();
        let due = file_records::due(self.journal.session.client(), &busy, room);
        let due = self.pool.while_uploading(due).await?;
        self.supervisor.recovered();
        self.all_given = due.is_empty();
        let mut ready = self.pool.look_at(due);
        if self.pool.asks_by_content() {
            let known = self.journal.note_known_sizes(&mut ready);
            self.pool.while_uploading(known).await?;
        }
        let mut in_parts: Vec<_> = ready
            .iter_mut()
            .filter(|ready| self.pool.goes_in_parts(ready))
            .collect();
        if !in_parts.is_empty() {
            let begun = self.journal.read_begun_uploads(&mut in_parts);
            self.pool.while_uploading(begun).await?;
        }
        for ready in &mut ready {
            // What could not be noted yet is newer.
            if let Some(known) = self.progress.in_progress(&ready.pending.path) {
                ready.begun = Some(known);
            }
        }
        self.pool.give(ready);
        Ok(())
    }

    /// Waits until an upload ends, more files may be due or go, or a page is to be looked at.
    async fn wait(&mut self, is_closed: bool) -> Result<()> {
        let mut until = self.rescan.next_at();
        if !self.lane.state.bandwidth.unrecorded().is_empty() {
            until = until.min(self.traffic_recorded_at + RECORD_TRAFFIC_EVERY);
        }
        if self.all_given || is_closed {
            self.count().await?;
        }
        if self.all_given && !is_closed {
            let busy = self.pool.busy();
            let large_from = self.pool.no_large_from();
            let next = file_records::next_due(self.journal.session.client(), &busy, large_from);
            let seconds = self.pool.while_uploading(next).await?;
            let wait = seconds.map_or(LONGEST_WAIT, |seconds| Duration::from_secs_f64(seconds.max(0.05)));
            until = until.min(Instant::now() + wait.min(LONGEST_WAIT));
            if self.pool.has_news() {
                // An upload has ended while the database was asked.
                return Ok(());
            }
        }
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
            () = self.progress.due() => return Ok(()),
            () = self.lane.state.wanted.notified() => {}
            () = self.watch.changed() => {}
            () = tokio::time::sleep_until(until) => {}
            () = self.lane.state.bandwidth.turned(is_closed) => {}
        }
        self.all_given = false;
        Ok(())
    }

    /// Sets the gauge of files that are not uploaded yet.
    async fn count(&mut self) -> Result<()> {
        self.pool.while_uploading(self.journal.count()).await?;
        self.counted_at = Some(Instant::now());
        Ok(())
    }

    /// Makes files due that the watch saw appear or change.
    async fn look_at_seen(&mut self) -> Result<()> {
        let seen = self.watch.take();
        if seen.lost {
            self.rescan.begin_soon();
        }
        self.lane.publish_problem(self.watch);
        self.seen_while_busy.extend(seen.paths);
        // The outcome of a busy file is not recorded yet: whether the file has changed since is seen
        // afterwards.
        let (busy, idle): (Vec<_>, Vec<_>) = std::mem::take(&mut self.seen_while_busy)
            .into_iter()
            .partition(|path| self.pool.is_busy(path));
        self.seen_while_busy = busy;
        self.seen_while_busy.sort_unstable();
        self.seen_while_busy.dedup();
        let journal = &self.journal;
        let look = async {
            for paths in idle.chunks(1_000) {
                journal.look_at(paths).await?;
            }
            Ok(())
        };
        self.pool.while_uploading(look).await
    }
}
