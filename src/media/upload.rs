//! The upload lane: takes the files whose turn has come, and brings each to the cloud once.
//!
//! Files go up side by side ([`super::upload_pool`]), and the database is spoken to meanwhile: what has ended is
//! written down group by group, each group in one transaction, as large as it has become while the one before
//! it was written.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::paths;
use super::records::{self, FileStamp};
use super::upload_pool::{FileFate, FileOutcome, UploadContext, UploadPool, look};
use super::watch::MediaWatch;
use crate::abort;
use crate::catalogue::Catalogue;
use crate::deliver::{ChangeOrigin, Cloud};
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::retry::Backoff;
use crate::source::connect::Session;
use crate::source::install::AttachedEntity;
use crate::source::site_session::SiteSession;
use crate::source::touch;
use crate::supervise::{NextRound, Supervisor};
use crate::wire::json::pick;

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
    /// Told when a row names a new file.
    pub wanted: Arc<Notify>,
}

struct FileLaneRound<'a> {
    desk: UploadJournal<'a>,
    flights: UploadPool<'a>,
    watch: &'a MediaWatch,
    /// What the watch saw of busy files: it is looked at when they have had their turn.
    seen: Vec<String>,
    /// Nothing more was due.
    dry: bool,
}

/// The database's side of the lane.
struct UploadJournal<'a> {
    uploads: &'a FileLane,
    session: Session,
    attached: Vec<AttachedEntity>,
}

/// How long a file may take after the end.
const LEFT: Duration = Duration::from_secs(3);

impl FileLane {
    /// Runs until `shutdown`, through outages of the source and of the cloud, on a thread of its own: a call
    /// of a file that hangs, as on a dead mount, holds up files alone. One that still hangs a moment after
    /// `shutdown` is left behind.
    ///
    /// # Errors
    /// Only what a person must mend first: configuration and identity.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        let stop = shutdown.child_token();
        let _stopped = stop.clone().drop_guard();
        let runtime = tokio::runtime::Handle::current();
        let lane = tokio::task::spawn_blocking(move || runtime.block_on(self.follow(stop)));
        let left = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LEFT).await;
        };
        tokio::select! {
            ended = lane => ended.map_err(|error| Error::local("upload files", std::io::Error::other(error)))?,
            () = left => {
                tracing::warn!("a call of a file in the media root does not return: it is left behind");
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
            // Whatever ended the round before may have ended its watch too, or the root may be there now.
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
                "the media root cannot be watched: files are found by looking every minute; \
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
        let capabilities = self.cloud.hello(&origin).await?.capabilities;
        let origin = Arc::new(origin);
        Ok(FileLaneRound {
            desk: UploadJournal {
                uploads: self,
                session: site.session,
                attached: site.attached,
            },
            flights: UploadPool::new(UploadContext {
                uploads: self,
                watch,
                capabilities,
                origin,
            }),
            watch,
            seen: Vec::new(),
            dry: false,
        })
    }
}

impl FileLaneRound<'_> {
    async fn run(&mut self) -> Result<()> {
        records::call_all(self.desk.session.client(), false).await?;
        self.desk.look_at_uploaded().await?;
        loop {
            let ended = self.flights.take();
            if !ended.is_empty() {
                self.flights.beside(self.desk.write_down(&ended)).await?;
                self.flights.written(&ended);
                // What was seen of them meanwhile is looked at now.
                self.dry &= self.seen.is_empty();
                continue;
            }
            if let Some(error) = self.flights.stopped() {
                return Err(error);
            }
            let room = self.flights.room();
            if !self.dry && room > 0 {
                self.look_at_seen().await?;
                self.flights.beside(self.desk.count()).await?;
                let busy: Vec<String> = self.flights.busy().into_iter().map(str::to_owned).collect();
                let busy: Vec<&str> = busy.iter().map(String::as_str).collect();
                let due = records::due(self.desk.session.client(), &busy, room as i64);
                let due = self.flights.beside(due).await?;
                self.dry = due.len() < room;
                self.flights.give(due);
                continue;
            }
            self.wait().await?;
        }
    }

    /// Waits until a file has ended or, where no more are due, until more may be.
    async fn wait(&mut self) -> Result<()> {
        if !self.dry {
            self.flights.next().await;
            return Ok(());
        }
        self.desk.count().await?;
        let seconds = records::next_due(self.desk.session.client(), &self.flights.busy()).await?;
        let seconds = seconds.unwrap_or(60.0).clamp(0.05, 60.0);
        tokio::select! {
            biased;
            () = self.desk.session.closed() => {
                return Err(Error::new(Kind::SourceUnreachable, "wait for files", "the connection broke off"));
            }
            () = self.flights.next() => return Ok(()),
            () = self.desk.uploads.wanted.notified() => {}
            () = self.watch.news() => {}
            () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => {}
        }
        self.dry = false;
        Ok(())
    }

    /// Files that the watch saw come or change get their turn.
    async fn look_at_seen(&mut self) -> Result<()> {
        let seen = self.watch.take();
        let desk = &self.desk;
        if seen.lost {
            let all = async {
                records::call_all(desk.session.client(), false).await?;
                desk.look_at_uploaded().await
            };
            self.flights.beside(all).await?;
        }
        self.seen.extend(seen.paths);
        // A busy file is not written down yet: whether it has changed since is seen afterwards.
        let (later, now): (Vec<_>, Vec<_>) = std::mem::take(&mut self.seen)
            .into_iter()
            .partition(|path| self.flights.is_busy(path));
        self.seen = later;
        self.seen.sort_unstable();
        self.seen.dedup();
        let look = async {
            for paths in now.chunks(1_000) {
                let known = records::known(desk.session.client(), paths).await?;
                desk.call_changed(known).await?;
            }
            Ok(())
        };
        self.flights.beside(look).await
    }
}

impl UploadJournal<'_> {
    /// Uploaded files that have changed since get their turn again.
    async fn look_at_uploaded(&self) -> Result<()> {
        let mut after = String::new();
        loop {
            let page = records::uploaded_after(self.session.client(), &after, 1_000).await?;
            let Some((last, _, _)) = page.last() else {
                return Ok(());
            };
            after.clone_from(last);
            self.call_changed(page).await?;
        }
    }

    async fn call_changed(&self, known: Vec<(String, String, Option<FileStamp>)>) -> Result<()> {
        let root = self.uploads.root.clone();
        let changed = tokio::task::spawn_blocking(move || {
            known
                .into_iter()
                .filter(|(path, state, before)| {
                    let now = paths::locate(&root, path).ok().and_then(|file| look(&file).ok());
                    match (state.as_str(), now) {
                        ("uploaded", Some(now)) => *before != Some(now),
                        ("uploaded", None) => false,
                        _ => now.is_some(),
                    }
                })
                .map(|(path, _, _)| path)
                .collect::<Vec<_>>()
        })
        .await
        .map_err(|error| Error::new(Kind::Media, "look at media files", error.to_string()))?;
        if changed.is_empty() {
            return Ok(());
        }
        records::call(self.session.client(), &changed, 0.0).await
    }

    /// Writes down what files' turns ended with, and touches the rows that name the uploaded ones again.
    /// Where a group cannot be written as one, for a row that is locked, its files are written one by one.
    async fn write_down(&mut self, ended: &[FileOutcome]) -> Result<()> {
        let Err(error) = self.write_group(ended).await else {
            return Ok(());
        };
        if ended.len() == 1 || error.sqlstate().is_none() {
            return Err(error);
        }
        tracing::debug!(%error, files = ended.len(), "files are written down one by one");
        for one in ended {
            self.write_group(std::slice::from_ref(one)).await?;
        }
        Ok(())
    }

    /// One transaction.
    async fn write_group(&mut self, ended: &[FileOutcome]) -> Result<()> {
        let failed = |error| Error::postgres("write down uploads", error);
        let (mut done, mut late) = (Vec::new(), Vec::new());
        for one in ended {
            match &one.end {
                FileFate::Uploaded(look, uploaded) => done.push(records::UploadedFile {
                    path: &one.path,
                    look: *look,
                    hash: uploaded.hash.to_string(),
                    url: &uploaded.url,
                    remote_path: uploaded.path.as_deref(),
                }),
                FileFate::Later(later) => late.push(records::DeferredFile {
                    path: &one.path,
                    state: later.state,
                    why: &later.why,
                    seconds: later.seconds,
                    counts: later.counts,
                }),
            }
        }
        if done.is_empty() && late.len() == 1 {
            return records::put_off(self.session.client(), &late).await;
        }
        let transaction = self.session.client_mut().transaction().await.map_err(failed)?;
        let client = transaction.client();
        if ended.len() > 1 {
            // The site's own transactions wait longer before one of them is ended for a deadlock.
            client
                .batch_execute("set local lock_timeout = '200ms'")
                .await
                .map_err(failed)?;
            let paths: Vec<&str> = ended.iter().map(|one| one.path.as_str()).collect();
            records::lock(client, &paths).await?;
        }
        if !late.is_empty() {
            records::put_off(client, &late).await?;
        }
        if !done.is_empty() {
            records::uploaded(client, &done).await?;
            let mut paths: Vec<&str> = done.iter().map(|one| one.path).collect();
            let clashing = records::part_clashing(client, &paths).await?;
            if !clashing.is_empty() {
                tracing::warn!(
                    files = clashing.len(),
                    "the cloud gave several files one address: those that came later go up again under other names"
                );
                paths.retain(|path| clashing.iter().all(|clash| clash != path));
            }
            let references = records::references(client, &paths).await?;
            for (place, entity) in self.uploads.catalogue.entities().iter().enumerate() {
                // A row that was noted before the entity's key columns changed is no longer found by that
                // key.
                let keys: Vec<&str> = references
                    .iter()
                    .filter(|(name, _)| *name == entity.name)
                    .map(|(_, key)| key.as_str())
                    .filter(|key| {
                        pick(key, &entity.key).is_ok_and(|values| values.iter().all(Option::is_some))
                    })
                    .collect();
                touch::keys(client, entity, self.attached[place].id, &keys).await?;
            }
            abort::point("before an upload is noted");
        }
        transaction.commit().await.map_err(failed)?;
        if !done.is_empty() {
            abort::point("after an upload is noted");
        }
        let metrics = &self.uploads.metrics.files;
        for one in &done {
            metrics.uploaded.inc();
            metrics.bytes.inc_by(one.look.size as u64);
            tracing::debug!(path = one.path, bytes = one.look.size, "uploaded");
        }
        Ok(())
    }

    async fn count(&self) -> Result<()> {
        let counts = records::counts(self.session.client()).await?;
        self.uploads
            .metrics
            .files
            .waiting
            .set((counts.waiting + counts.failing + counts.missing) as i64);
        Ok(())
    }
}
