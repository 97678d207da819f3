//! The upload lane: takes the files whose turn has come, and brings each to the cloud once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::SecretString;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::paths::{self, Where};
use super::records::{self, Look, Wanted};
use super::watch::Watch;
use crate::abort;
use crate::catalogue::Catalogue;
use crate::deliver::{Capabilities, Cloud, Origin, UploadFile, Uploaded};
use crate::error::{Class, Error, Kind, Result};
use crate::metrics::Metrics;
use crate::retry::{Backoff, Repeats};
use crate::source::connect::Session;
use crate::source::describe::{self, Table};
use crate::source::install::{self, Attached};
use crate::source::{identity, recapture};

/// Files looked at in one go.
const TURN: i64 = 16;

/// How often a missing file is looked for although nothing was seen.
const MISSING_EVERY: f64 = 60.0;

/// File name endings of videos.
const VIDEOS: [&str; 10] = [
    "mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "ts", "flv",
];

/// What the lane works on.
#[derive(Clone)]
pub struct Uploads {
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

struct Lane<'a> {
    uploads: &'a Uploads,
    session: Session,
    tables: Vec<Table>,
    attached: Vec<Attached>,
    capabilities: Capabilities,
    watch: &'a Watch,
}

impl Uploads {
    /// Runs until `shutdown`, through outages of the source and of the cloud.
    ///
    /// # Errors
    /// Only what a person must mend first: configuration and identity.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<()> {
        let mut backoff = Backoff::within(Duration::from_millis(200), Duration::from_secs(30));
        let mut repeats = Repeats::new("uploads");
        let mut watch = self.start_watch();
        while !shutdown.is_cancelled() {
            let round = async {
                let mut lane = tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    lane = self.open(&watch) => lane?,
                };
                backoff.reset();
                repeats.recovered();
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Ok(()),
                    ended = lane.run() => ended,
                }
            };
            let Err(error) = round.await else { break };
            if error.class() == Class::Fatal {
                return Err(error);
            }
            repeats.failed(&error);
            tokio::select! {
                () = tokio::time::sleep(backoff.next(None)) => {}
                () = shutdown.cancelled() => {}
            }
            // Whatever broke the round may have broken the watch too, or its root may be there now.
            watch = self.start_watch();
        }
        Ok(())
    }

    fn start_watch(&self) -> Watch {
        let (watch, error) = Watch::start(&self.root);
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

    async fn open<'a>(&'a self, watch: &'a Watch) -> Result<Lane<'a>> {
        let session = Session::open(&self.database_url, "media").await?;
        let identity = identity::read(session.client(), self.source_id.as_deref()).await?;
        let tables = describe::tables_as_they_stand(session.client(), &self.catalogue).await?;
        let attached = install::attached(session.client(), &self.catalogue, &tables).await?;
        let origin = Origin {
            source_id: identity.source_id,
            epoch: identity.epoch,
        };
        let capabilities = self.cloud.hello(&origin).await?.capabilities;
        Ok(Lane {
            uploads: self,
            session,
            tables,
            attached,
            capabilities,
            watch,
        })
    }
}

impl Lane<'_> {
    async fn run(&mut self) -> Result<()> {
        records::call_all(self.session.client(), false).await?;
        self.look_at_uploaded().await?;
        loop {
            self.look_at_seen().await?;
            self.count().await?;
            let due = records::due(self.session.client(), TURN).await?;
            if due.is_empty() {
                self.wait().await?;
            }
            for wanted in due {
                self.take(wanted).await?;
            }
        }
    }

    async fn wait(&self) -> Result<()> {
        let seconds = records::next_due(self.session.client()).await?.unwrap_or(60.0);
        tokio::select! {
            () = self.uploads.wanted.notified() => {}
            () = self.watch.news() => {}
            () = tokio::time::sleep(Duration::from_secs_f64(seconds.clamp(0.05, 60.0))) => {}
            () = self.session.closed() => {
                return Err(Error::new(Kind::SourceUnreachable, "wait for files", "the connection broke off"));
            }
        }
        Ok(())
    }

    /// Files that the watch saw come or change get their turn.
    async fn look_at_seen(&self) -> Result<()> {
        let seen = self.watch.take();
        if seen.lost {
            records::call_all(self.session.client(), false).await?;
            self.look_at_uploaded().await?;
        }
        for paths in seen.paths.chunks(1_000) {
            let known = records::known(self.session.client(), paths).await?;
            self.call_changed(known).await?;
        }
        Ok(())
    }

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

    async fn call_changed(&self, known: Vec<(String, String, Option<Look>)>) -> Result<()> {
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

    /// One file's turn: it is uploaded, or put off with the reason.
    async fn take(&mut self, wanted: Wanted) -> Result<()> {
        let path = wanted.path.as_str();
        let metrics = &self.uploads.metrics.files;
        let file = match self.ready(&wanted) {
            Ok(file) => file,
            Err(Later { state, why, seconds }) => {
                if state == "missing" && wanted.attempts == 0 {
                    tracing::warn!(path, "a row names a file that is not in the media root");
                    metrics.missing.inc();
                }
                let counts = state != "waiting";
                return records::put_off(self.session.client(), path, state, &why, seconds, counts).await;
            }
        };
        let before = match look(&file) {
            Ok(look) => look,
            Err(error) => {
                return records::put_off(
                    self.session.client(),
                    path,
                    "missing",
                    &error.to_string(),
                    MISSING_EVERY,
                    true,
                )
                .await;
            }
        };
        match self
            .uploads
            .cloud
            .upload(&wanted.directory, UploadFile::new(&file))
            .await
        {
            Ok(uploaded) if look(&file).ok() != Some(before) || uploaded.bytes != before.size as u64 => {
                self.put_off(path, "it changed while it was uploaded", 1.0).await
            }
            // The reference server answers the hash of what it has; a server that cannot is believed.
            Ok(uploaded) if self.capabilities.changes && !uploaded.confirmed => {
                self.put_off(path, "the cloud did not confirm its content", 30.0)
                    .await
            }
            Ok(uploaded) => self.done(path, before, &uploaded).await,
            Err(failure) => match failure.error().kind() {
                Kind::Media => self.put_off(path, failure.error().cause(), 2.0).await,
                Kind::CloudRefused => {
                    metrics.failed.inc();
                    tracing::warn!(path, "{}", failure.error());
                    let why = failure.error().cause().to_owned();
                    records::put_off(self.session.client(), path, "refused", &why, 0.0, true).await
                }
                // The cloud is away: the file keeps its turn, and the lane waits.
                _ => Err(failure.into()),
            },
        }
    }

    async fn put_off(&self, path: &str, why: &str, seconds: f64) -> Result<()> {
        records::put_off(self.session.client(), path, "waiting", why, seconds, true).await
    }

    /// Whether the file can be uploaded now.
    fn ready(&self, wanted: &Wanted) -> std::result::Result<PathBuf, Later> {
        let path =
            paths::below(&self.uploads.root, &wanted.path).map_err(|why| Later::refused(why.into()))?;
        let ending = Path::new(&path)
            .extension()
            .map(|ending| ending.to_string_lossy().to_lowercase());
        if !self.uploads.videos && ending.is_some_and(|ending| VIDEOS.contains(&ending.as_str())) {
            return Err(Later::waiting(
                "videos are not uploaded (files.upload_videos = false)",
                3600.0,
            ));
        }
        let file = paths::locate(&self.uploads.root, &path).map_err(|why| match why {
            Where::Missing => Later {
                state: "missing",
                why: "the file is not there".into(),
                seconds: MISSING_EVERY,
            },
            Where::Outside => Later::refused("a link leads outside the media root".into()),
            Where::Unreadable(error) => Later {
                state: "missing",
                why: error.to_string(),
                seconds: MISSING_EVERY,
            },
        })?;
        let about = file
            .metadata()
            .map_err(|error| Later::waiting(&error.to_string(), 5.0))?;
        if !about.is_file() {
            return Err(Later::refused("it is not a regular file".into()));
        }
        if about.len() == 0 {
            return Err(Later::waiting("the file is empty", 30.0));
        }
        let age = about
            .modified()
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        // A time in the future says nothing; then only the watch can tell.
        if let Some(age) = age
            && age < self.uploads.settle
        {
            let left = (self.uploads.settle - age).as_secs_f64() + 0.01;
            return Err(Later::waiting("the file was written a moment ago", left));
        }
        if self.watch.is_written(&path) {
            return Err(Later::waiting("the file is being written", 1.0));
        }
        Ok(file)
    }

    /// Writes the upload down and captures the rows that name the file anew, in one transaction.
    async fn done(&mut self, path: &str, look: Look, uploaded: &Uploaded) -> Result<()> {
        let failed = |error| Error::postgres(format!("write down the upload of {path}"), error);
        let transaction = self.session.client_mut().transaction().await.map_err(failed)?;
        let client = transaction.client();
        records::uploaded(client, path, look, &uploaded.hash.to_string(), &uploaded.url).await?;
        let references = records::references(client, path).await?;
        for (place, entity) in self.uploads.catalogue.entities().iter().enumerate() {
            if !self.tables[place].fits(entity) {
                // Its rows cannot be found now: the sync that follows the remedy finds them.
                continue;
            }
            let keys: Vec<String> = references
                .iter()
                .filter(|(name, _)| *name == entity.name)
                .map(|(_, key)| key.clone())
                .collect();
            for chunk in keys.chunks(recapture::CHUNK) {
                recapture::rows(
                    client,
                    entity,
                    &self.tables[place],
                    self.attached[place].id,
                    chunk,
                )
                .await?;
            }
        }
        abort::point("before an upload is noted");
        transaction.commit().await.map_err(failed)?;
        abort::point("after an upload is noted");
        let metrics = &self.uploads.metrics.files;
        metrics.uploaded.inc();
        metrics.bytes.inc_by(uploaded.bytes);
        tracing::debug!(path, bytes = uploaded.bytes, "uploaded");
        Ok(())
    }

    async fn count(&self) -> Result<()> {
        let counts = records::counts(self.session.client()).await?;
        self.uploads
            .metrics
            .files
            .waiting
            .set((counts.waiting + counts.missing) as i64);
        Ok(())
    }
}

/// Why a file is not uploaded now, and when to look again.
struct Later {
    state: &'static str,
    why: String,
    seconds: f64,
}

impl Later {
    fn waiting(why: &str, seconds: f64) -> Self {
        Self {
            state: "waiting",
            why: why.to_owned(),
            seconds,
        }
    }

    fn refused(why: String) -> Self {
        Self {
            state: "refused",
            why,
            seconds: 0.0,
        }
    }
}

fn look(file: &Path) -> std::io::Result<Look> {
    let about = file.metadata()?;
    let modified = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Look {
        size: about.len() as i64,
        modified_us: modified.as_micros() as i64,
    })
}
