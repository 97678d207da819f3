//! One-shot passes of the command line, where no daemon runs: the drain and the upload lane run next to the
//! pass, and end with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::leader::Leader;
use super::{Replicator, cloud, drain, reconcile, uploads};
use crate::checkpoint::SledStore;
use crate::config::Settings;
use crate::control::SyncRequest;
use crate::drain::{AcceptedKeyRecorder, Condition, ReplicationState};
use crate::error::{Error, Kind, Result};
use crate::reconcile::Observer;
use crate::reconcile::backfill::{BackfillReport, RowSpan};
use crate::reconcile::report::SyncReport;
use crate::source::pauses;
use crate::supervise::pause_or_stop;

/// A pass ends if no file advances for so long while files wait.
const FILES_PATIENCE: Duration = Duration::from_secs(60);

/// A replicator for one pass.
pub struct OneShot {
    replicator: Arc<Replicator>,
    leader: Leader,
    /// What the drain has delivered since it began.
    recording: AcceptedKeyRecorder,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<Result<()>>>,
    settings: Settings,
}

impl OneShot {
    /// As [`OneShot::try_start`].
    ///
    /// # Errors
    /// A replicator drains this outbox already; or as [`OneShot::try_start`].
    pub async fn start(settings: &Settings) -> Result<Self> {
        Self::try_start(settings).await?.ok_or_else(|| {
            Error::new(
                Kind::Config,
                "drain the outbox",
                format!(
                    "a replicator drains it already, and its operator API does not answer at {}",
                    settings.control.listen
                ),
            )
            .remedy("run this on the machine and with the configuration of that replicator, or stop it first")
        })
    }

    /// Takes the leader's lock, and starts the drain and the upload lane. Returns `None` if a replicator
    /// drains this outbox.
    ///
    /// # Errors
    /// The source's, the store's, or a configuration error.
    pub async fn try_start(settings: &Settings) -> Result<Option<Self>> {
        let replicator = Replicator::new(settings)?;
        let Some(leader) = Leader::try_take(settings.require_database_url()?).await? else {
            return Ok(None);
        };
        let (store, _aside) = SledStore::open(&settings.store.path.join("checkpoint"))?;
        let cloud = cloud(settings)?;
        replicator.read_pauses().await?;
        let state = replicator.state.clone();
        let drain = drain(settings, cloud.clone(), Arc::new(store), state.clone())?;
        let uploads = uploads(settings, cloud, &state)?;
        let recording = state.record();
        let stop = CancellationToken::new();
        let tasks = vec![
            tokio::spawn({
                let stop = stop.clone();
                async move { drain.run(stop).await }
            }),
            tokio::spawn({
                let stop = stop.clone();
                async move { uploads.run(stop).await }
            }),
        ];
        Ok(Some(Self {
            replicator,
            leader,
            recording,
            stop,
            tasks,
            settings: settings.clone(),
        }))
    }

    /// One sync, with the files of what it pushed.
    ///
    /// # Errors
    /// Before the first entity; later ones are in the report.
    pub async fn sync(&self, request: &SyncRequest, observer: &dyn Observer) -> Result<SyncReport> {
        let mut report = self
            .replicator
            .sync_recorded(request, &self.recording, observer)
            .await?;
        if let Err(reason) = self.settle().await {
            report.error(reason);
        }
        super::tell_files(&self.settings, &mut report).await?;
        Ok(report)
    }

    /// Waits until nothing waits: no change, and no file that can be uploaded.
    ///
    /// # Errors
    /// Why it does not get there.
    pub async fn settle(&self) -> std::result::Result<(), String> {
        let replicator = &self.replicator;
        let mut unwell = 0;
        let files = &replicator.state.files;
        let mut advanced = (files.progress(), Instant::now());
        loop {
            let gauges = replicator
                .questions
                .gauges(replicator.state.checkpoint())
                .await
                .map_err(|error| error.to_string())?;
            // The timetable's will is no failure: those files wait for the next run.
            let are_sent = gauges.files.soon == 0 || files.bandwidth.is_closed();
            let files_are_done = are_sent && !files.rescan_is_pending();
            if gauges.lag.changes == 0 && files_are_done {
                return Ok(());
            }
            if gauges.lag.changes > 0 || files.progress() != advanced.0 {
                advanced = (files.progress(), Instant::now());
            } else if advanced.1.elapsed() > FILES_PATIENCE {
                return Err(format!(
                    "{} files wait, and none has advanced for {} s: see `cloud-sync files list`",
                    gauges.files.waiting,
                    FILES_PATIENCE.as_secs()
                ));
            }
            match replicator.state.condition() {
                Condition::Starting | Condition::Replicating => unwell = 0,
                Condition::Stopped { reason } | Condition::Paused { reason } => return Err(reason),
                Condition::BackingOff { reason, .. } | Condition::KeyRefused { reason } => {
                    unwell += 1;
                    if unwell > 100 {
                        return Err(reason);
                    }
                }
            }
            pause_or_stop(Duration::from_millis(200), &self.stop).await;
        }
    }

    /// Stops the tasks, in order, and gives the lock back.
    ///
    /// # Errors
    /// The drain's or the upload lane's.
    pub async fn finish(self) -> Result<()> {
        self.stop.cancel();
        let mut ended = Ok(());
        for task in self.tasks {
            let task = task
                .await
                .unwrap_or_else(|error| Err(Error::local("join a task", std::io::Error::other(error))));
            ended = ended.and(task);
        }
        self.leader.release().await;
        ended
    }
}

/// Backfills, with a running replicator or without one: the rows go through the outbox, and the drain of this
/// process delivers them where no replicator runs.
///
/// # Errors
/// Before the first entity; later ones are in the report.
pub async fn backfill(
    settings: &Settings,
    entities: &[String],
    span: RowSpan,
    restart: bool,
    observer: &dyn Observer,
    shutdown: &CancellationToken,
) -> Result<BackfillReport> {
    let entity_indexes = settings.catalogue.select(entities)?;
    let once = OneShot::try_start(settings).await?;
    let session = super::connect(settings, "pauses").await?;
    if let Err(error) = pauses::read(session.client()).await?.must_flow("backfill") {
        if let Some(once) = once {
            once.finish().await?;
        }
        return Err(error);
    }
    drop(session);
    let state = match &once {
        Some(once) => once.replicator.state.clone(),
        None => mirrored_state(settings, shutdown).await?,
    };
    let reconcile = reconcile(settings, &cloud(settings)?, &state).await?;
    let report = reconcile
        .backfill(&entity_indexes, span, restart, observer, shutdown)
        .await;
    if let Some(once) = once {
        if !shutdown.is_cancelled() {
            // Files are the upload lane's: what waits goes on with the next run.
            let _ = once.settle().await;
        }
        once.finish().await?;
    }
    Ok(report)
}

/// A state that follows the checkpoint's mirror, where another process drains.
async fn mirrored_state(settings: &Settings, shutdown: &CancellationToken) -> Result<Arc<ReplicationState>> {
    let replicator = Replicator::new(settings)?;
    let session = super::connect(settings, "follow the mirror").await?;
    let identity =
        crate::source::identity::stored_identity_of(session.client(), settings.source.source_id.as_deref())
            .await?;
    let state = replicator.state.clone();
    let (followed, shutdown) = (state.clone(), shutdown.clone());
    tokio::spawn(async move {
        loop {
            if let Ok(Some(checkpoint)) = crate::source::outbox::mirrored(&session, &identity).await {
                followed.follow(checkpoint);
            }
            if pause_or_stop(Duration::from_millis(500), &shutdown).await {
                return;
            }
        }
    });
    Ok(state)
}
