//! The replicator: builds, starts and joins the tasks of one site.
//!
//! One replicator drains an outbox. Who may is settled by a lock in the source database, held by a session of
//! its own ([`leader`]): a second replicator waits, and takes over when the lock comes free.
//!
//! Tasks while leading: the drain, the upload lane, the gauges, the drift monitor, which also compares
//! what may have been missed, the sync schedule, and what operators pause. The operator API serves all the time, and
//! alerts are watched all the time. Tasks begin again,
//! with the checkpoint as it is, when the settings are replaced ([`Replicator::reload`]). They are dropped at
//! once when the leader's session is lost: what they are doing then must not meet the next leader's.
//!
//! Join order on shutdown: the schedule, the drift monitor, the gauges and the pauses end at once; the drain gives its reader up,
//! finishes or gives up the batch at hand, commits and mirrors the checkpoint; the upload lane gives its file
//! up; last the leader's lock goes. It takes [`END`] at most: what has not ended by then is dropped, which
//! costs no more than a crash would.

mod alerts;
pub mod cloud_check;
mod completed_settings;
mod drift_monitor;
mod leader;
mod one_shot;
mod operator;
mod outbox_forecast;
mod pauses;
pub mod preconditions;
mod replay;
mod row_inquiry;
mod source_status;
mod sync_schedule;
mod syncs;
pub mod upgrade;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::alerts::AlertChannels;
use crate::checkpoint::SledStore;
use crate::config::{CapabilityChoice, FileDriver, Loaded, Settings};
use crate::control::status::{LastSync, StatusReport};
use crate::control::{ControlServer, Operator, ServerToken, SyncRequest, token};
use crate::deliver::{Cloud, CloudOptions, ObjectStorage, StorageKind, StorageOptions, UploadForm};
use crate::drain::{BatchLimits, Drain, HANDSHAKE_EVERY, ReplicationState};
use crate::error::{Class, Error, Result};
use crate::liveness::Liveness;
use crate::media::MediaRoot;
use crate::media::file_lane::FileLane;
use crate::metrics::Metrics;
use crate::reconcile::report::SyncReport;
use crate::reconcile::{NoObserver, Reconcile};
use crate::retry::Backoff;
use crate::schedule::Schedule;
use crate::source::complete::PatternScope;
use crate::source::identity::OutboxDeclaration;
use crate::source::install;
use crate::supervise::{NextRound, Supervisor, pause_or_stop};

pub(crate) use alerts::test_alerts;
pub(crate) use completed_settings::complete_settings;
use drift_monitor::DriftSummary;
use leader::Leader;
pub use one_shot::{OneShot, backfill};
pub use replay::{ReplayFrom, ReplayedCheckpoint, replay};
pub(crate) use row_inquiry::inquire;
use source_status::{SourceGauges, SourceStatusSession};
pub use source_status::{connect, offline_status};
use syncs::{SyncProgress, tell_files};

/// How long a sync waits for a drain that is not well.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often the site's database is asked what waits.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

/// The same while nothing waits and nothing is delivered.
const STILL_GAUGES_EVERY: Duration = Duration::from_secs(60);

/// How long the tasks may take to end.
const END: Duration = Duration::from_secs(8);

/// How long the end may be held up by a source that does not answer.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a reload replaces.
struct ReloadableConfig {
    settings: Settings,
    cloud: Cloud,
    schedule: Option<Schedule>,
}

impl ReloadableConfig {
    fn new(settings: &Settings) -> Result<Self> {
        // Whether they can be used shows now, and not at the first problem.
        AlertChannels::new(&settings.alerts)?;
        settings.catalogue.require_keys()?;
        Ok(Self {
            cloud: cloud(settings)?,
            schedule: sync_schedule::schedule(&settings.schedule)?,
            settings: settings.clone(),
        })
    }
}

/// A site's replicator.
pub struct Replicator {
    live: watch::Sender<Arc<ReloadableConfig>>,
    token: Mutex<Option<ServerToken>>,
    stopping: CancellationToken,
    state: Arc<ReplicationState>,
    questions: SourceStatusSession,
    started_at: Timestamp,
    started: std::time::Instant,
    /// Since when it stands by, and why.
    standby: Mutex<Option<(Timestamp, String)>>,
    gauges: Mutex<SourceGauges>,
    last_sync: Mutex<Option<LastSync>>,
    sync_progress: SyncProgress,
    syncing: tokio::sync::Mutex<()>,
    drift: DriftSummary,
    drift_every: Duration,
}

impl Replicator {
    /// A replicator for these settings. Nothing is connected yet.
    ///
    /// # Errors
    /// A configuration error.
    pub fn new(settings: &Settings) -> Result<Arc<Self>> {
        let every = drift_monitor::every(settings.catalogue.entities().len());
        Self::monitoring_drift_every(settings, every)
    }

    /// Installs capture in the site's database, or brings it up to date; can be repeated.
    ///
    /// # Errors
    /// The source's, or a configuration error that names the entity that does not fit its table.
    pub async fn install(settings: &Settings) -> Result<()> {
        let settings = complete_settings(settings, PatternScope::All).await?;
        let url = settings.require_database_url()?;
        install::init(url, &settings.catalogue, OutboxDeclaration::Nothing).await?;
        Ok(())
    }

    /// The settings with the catalogue that the site's database completes: which tables `catalogue.tables`
    /// takes, the keys that `[[entity]]` leaves out, and the order, parents before their children. A
    /// replicator is made with these.
    ///
    /// # Errors
    /// The source's; a configuration error with everything that must be corrected.
    pub async fn complete_settings(settings: &Settings) -> Result<Settings> {
        complete_settings(settings, PatternScope::Captured).await
    }

    /// Compares the site with the cloud once, pushes what the cloud lacks, and waits until it is there. No
    /// replicator may run for this site.
    ///
    /// # Errors
    /// What prevents the comparison as a whole; the errors of single entities are in the report.
    pub async fn sync_once(settings: &Settings, request: &SyncRequest) -> Result<SyncReport> {
        let settings = Self::complete_settings(settings).await?;
        let once = one_shot::OneShot::start(&settings).await?;
        let report = once.sync(request, &NoObserver).await;
        once.finish().await?;
        report
    }

    /// Everything that an operator wants to know now.
    ///
    /// # Errors
    /// The source's.
    pub async fn report(&self) -> Result<StatusReport> {
        Operator::status(self).await
    }

    /// The same as [`Replicator::new`], with another time between two looks at the capture.
    ///
    /// # Errors
    /// A configuration error.
    pub fn monitoring_drift_every(settings: &Settings, drift_every: Duration) -> Result<Arc<Self>> {
        completed_settings::must_be_complete(settings)?;
        let catalogue = Arc::new(settings.catalogue.clone());
        let names = catalogue.entities().iter().map(|entity| entity.name.as_str());
        let metrics = Arc::new(Metrics::new(names));
        Ok(Arc::new(Self {
            live: watch::Sender::new(Arc::new(ReloadableConfig::new(settings)?)),
            token: Mutex::default(),
            stopping: CancellationToken::new(),
            state: Arc::new(ReplicationState::new(metrics)),
            questions: SourceStatusSession::new(settings)?,
            started_at: Timestamp::now(),
            started: std::time::Instant::now(),
            standby: Mutex::default(),
            gauges: Mutex::default(),
            last_sync: Mutex::default(),
            sync_progress: SyncProgress::default(),
            syncing: tokio::sync::Mutex::default(),
            drift: DriftSummary::default(),
            drift_every,
        }))
    }

    /// What the drain does.
    pub(crate) fn state(&self) -> Arc<ReplicationState> {
        self.state.clone()
    }

    /// The tasks that can be asked whether they still run.
    pub(crate) fn liveness(&self) -> Liveness {
        self.state.liveness.clone()
    }

    fn live(&self) -> Arc<ReloadableConfig> {
        self.live.borrow().clone()
    }

    /// Goes on with these settings, from the present checkpoint. They must be of the same source, store, port
    /// and catalogue: see [`Loaded::applied_over`].
    ///
    /// # Errors
    /// Settings that cannot be used; the old ones stay then.
    pub fn reload(&self, loaded: &Loaded) -> Result<()> {
        let live = ReloadableConfig::new(&loaded.settings)?;
        let secret = token::load_or_create(&loaded.settings)?;
        if let Some(token) = &*self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            token.replace(secret);
        }
        self.live.send_replace(Arc::new(live));
        Ok(())
    }

    /// Replicates until `shutdown`, and serves the operator API. `serving` gets the API's address.
    ///
    /// # Errors
    /// What a person must mend before it can go on: configuration, identity, a taken port, a store that
    /// cannot be written.
    pub async fn run(
        self: Arc<Self>,
        shutdown: CancellationToken,
        serving: impl FnOnce(std::net::SocketAddr),
    ) -> Result<()> {
        let settings = self.live().settings.clone();
        let server = ControlServer::bind(&settings, token::load_or_create(&settings)?, self.clone()).await?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(server.token());
        serving(server.address());
        let stop = shutdown.child_token();
        let guard = stop.clone().drop_guard();
        let served = tokio::spawn({
            let (liveness, stop) = (self.liveness(), stop.clone());
            async move { liveness.answering("operator API", server.serve(stop)).await }
        });
        let _stopping = self.stopping.clone().drop_guard();
        let overdue = async {
            stop.cancelled().await;
            self.stopping.cancel();
            tokio::time::sleep(END).await;
        };
        let led = tokio::select! {
            biased;
            led = self.state.liveness.answering("leader", self.lead_repeatedly(&stop)) => led,
            never = self.watch_alerts(&stop) => match never {},
            () = overdue => {
                tracing::warn!("a task did not end in time and is aborted; the next run goes on from the checkpoint");
                Ok(())
            }
        };
        self.stopping.cancel();
        drop(guard);
        let served = served
            .await
            .map_err(|error| Error::local("serve the operator API", std::io::Error::other(error)))?;
        led.and(served)
    }

    /// Leads whenever it may, until `shutdown`.
    async fn lead_repeatedly(&self, shutdown: &CancellationToken) -> Result<()> {
        let supervisor = Supervisor::new("leader", Backoff::within(leader::TRY_EVERY, leader::TRY_EVERY));
        let round = async || {
            let live = self.live();
            let url = live.settings.require_database_url()?;
            let taken = tokio::select! {
                () = shutdown.cancelled() => return Ok(NextRound::Never),
                taken = Leader::try_take(url) => taken?,
            };
            let Some(leader) = taken else {
                self.set_standby(Some("another replicator drains this outbox".to_owned()));
                return Ok(NextRound::After(leader::TRY_EVERY));
            };
            supervisor.recovered();
            self.set_standby(None);
            self.lead(leader, shutdown).await?;
            Ok(NextRound::After(Duration::ZERO))
        };
        let failed = |error: &Error| {
            if error.class() != Class::Fatal {
                self.state.source_away(error.to_string());
            }
        };
        supervisor.run(shutdown, failed, round).await
    }

    /// Runs the tasks while this process leads. Ends without an error when the lock is lost.
    async fn lead(&self, leader: Leader, shutdown: &CancellationToken) -> Result<()> {
        let (store, _aside) = SledStore::open(&self.live().settings.store.path.join("checkpoint"))?;
        let store = Arc::new(store);
        self.read_pauses().await?;
        tracing::info!("this process drains the outbox");
        let work = async {
            while !shutdown.is_cancelled() {
                self.work(store.clone(), shutdown).await?;
            }
            Ok(())
        };
        let worked = tokio::select! {
            biased;
            // The work is dropped at once: another process may drain from this moment on.
            () = leader.lost() => {
                tracing::error!("the leader's session was lost: draining stops");
                return Ok(());
            }
            worked = work => worked,
        };
        drop(store);
        // A lock that cannot be given back goes with the connection.
        let _ = tokio::time::timeout(GOODBYE, leader.release()).await;
        worked
    }

    /// Runs the tasks with the settings of now, until others come or until `shutdown`.
    async fn work(&self, store: Arc<SledStore>, shutdown: &CancellationToken) -> Result<()> {
        let mut replaced = self.live.subscribe();
        let live = replaced.borrow_and_update().clone();
        let drain = drain(
            &live.settings,
            live.cloud.clone(),
            store.clone(),
            self.state.clone(),
        )?;
        let uploads = uploads(&live.settings, live.cloud.clone(), &self.state)?;
        let stop = shutdown.child_token();
        let replaced = async {
            tokio::select! {
                _ = replaced.changed() => stop.cancel(),
                () = stop.cancelled() => {}
            }
        };
        // The first task that fails for good ends the others, which still finish in order.
        let ending = |result: Result<()>| {
            if result.is_err() {
                stop.cancel();
            }
            result
        };
        let ((), drained, uploaded, (), (), (), ()) = tokio::join!(
            replaced,
            async { ending(Box::pin(drain.run(stop.clone())).await) },
            async { ending(Box::pin(uploads.run(stop.clone())).await) },
            Box::pin(self.watch_gauges(&store, &stop)),
            Box::pin(self.monitor_drift(&stop)),
            Box::pin(self.follow_schedule(&live, &stop)),
            Box::pin(self.follow_pauses(&stop)),
        );
        drained.and(uploaded)
    }

    async fn watch_gauges(&self, store: &SledStore, stop: &CancellationToken) {
        let supervisor = Supervisor::tireless("gauges", GAUGES_EVERY);
        let round = async || {
            let started = tokio::time::Instant::now();
            let mut checkpoints = self.state.checkpoints();
            self.state.metrics.store_bytes.set(store.bytes() as i64);
            let gauges = tokio::select! {
                () = stop.cancelled() => return Ok(NextRound::Never),
                gauges = self.questions.gauges(self.state.checkpoint()) => gauges?,
            };
            supervisor.recovered();
            // Counting a long backlog is work: at most a twentieth of the time is spent on it.
            let rest = (started.elapsed() * 19).max(GAUGES_EVERY);
            let is_still = gauges.lag.changes == 0 && gauges.files.waiting == 0;
            self.note(gauges);
            if !is_still || pause_or_stop(rest, stop).await {
                return Ok(NextRound::After(rest));
            }
            // If nothing happens, there is little to ask; health wants to hear of it in time.
            let longer = STILL_GAUGES_EVERY.min(self.live().settings.control.lag_limit / 3);
            tokio::select! {
                // The sender lives as long as the replicator does.
                _ = checkpoints.changed() => {}
                _ = pause_or_stop(longer.saturating_sub(rest), stop) => {}
            }
            Ok(NextRound::After(Duration::ZERO))
        };
        // It is tireless: it ends when it is stopped.
        let _ = supervisor.run(stop, |_| {}, round).await;
    }

    fn note(&self, gauges: SourceGauges) {
        let metrics = &self.state.metrics;
        metrics.lag_changes.set(gauges.lag.changes as i64);
        metrics.lag_seconds.set(gauges.lag.seconds);
        metrics.outbox_bytes.set(gauges.outbox_bytes as i64);
        metrics
            .outbox_growth
            .set(gauges.growth.bytes_per_second.unwrap_or(f64::NAN));
        metrics
            .outbox_room
            .set(gauges.growth.room_bytes.map_or(f64::NAN, |bytes| bytes as f64));
        metrics
            .outbox_full_seconds
            .set(gauges.growth.full_in_seconds.unwrap_or(f64::NAN));
        metrics.quarantine.set(gauges.quarantine as i64);
        *self.gauges.lock().unwrap_or_else(PoisonError::into_inner) = gauges;
    }

    fn set_standby(&self, reason: Option<String>) {
        let mut standby = self.standby.lock().unwrap_or_else(PoisonError::into_inner);
        let since = standby.take().map_or_else(Timestamp::now, |(since, _)| since);
        *standby = reason.map(|reason| (since, reason));
    }

    /// Since when it stands by, and why; `None` if it does not.
    fn standby_since(&self) -> Option<(Timestamp, String)> {
        self.standby
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn standby(&self) -> Option<String> {
        self.standby_since().map(|(_, reason)| reason)
    }
}

/// The object storage that the settings describe; `None` if files go through the cloud's own API.
///
/// # Errors
/// A configuration error.
pub fn object_storage(settings: &Settings) -> Result<Option<ObjectStorage>> {
    let files = &settings.files;
    let kind = match files.driver {
        FileDriver::Api => return Ok(None),
        FileDriver::S3 => StorageKind::S3,
        FileDriver::Gcs => StorageKind::Gcs,
        FileDriver::Azure => StorageKind::Azure,
        FileDriver::File => StorageKind::File,
    };
    let bucket = files.bucket.clone().ok_or_else(|| {
        Error::config("bring files into an object storage", "files.bucket is not set")
            .remedy("name the bucket, the container or the folder, or set files.driver = \"api\"")
    })?;
    if files.url_valid.is_some() && files.public_url.is_some() {
        let why = "files.public_url and files.url_valid are both set: a signed URL is the storage's own";
        return Err(Error::config("bring files into an object storage", why)
            .remedy("remove files.public_url if the bucket is private, or files.url_valid if it is public"));
    }
    let storage = ObjectStorage::new(&StorageOptions {
        kind,
        bucket,
        prefix: files.prefix.clone().unwrap_or_default(),
        endpoint: files.endpoint.clone(),
        region: files.region.clone(),
        credentials: files.access_key.clone().zip(files.secret_key.clone()),
        public_url: files.public_url.clone(),
        url_valid: files.url_valid,
    })?;
    Ok(Some(storage))
}

/// The cloud's client that the settings describe.
///
/// # Errors
/// A configuration error.
pub fn cloud(settings: &Settings) -> Result<Cloud> {
    let (url, key) = settings.require_cloud()?;
    let options = CloudOptions {
        timeout: settings.cloud.timeout,
        allow_insecure_http: settings.cloud.allow_insecure_http,
        ca_file: settings.cloud.ca_file.clone(),
        forced: match &settings.cloud.capabilities {
            CapabilityChoice::Auto => None,
            CapabilityChoice::Only(names) => Some(names.clone()),
        },
        in_flight: settings.delivery.in_flight,
        compress: settings.delivery.compress.unwrap_or(!loopback(url)),
        prefix: settings.cloud.prefix.clone(),
        status_path: settings.cloud.status_path.clone(),
        upload: UploadForm {
            field: settings.files.field.clone(),
            fields: settings.files.fields.clone(),
        },
        delete_moved: settings.cloud.delete_moved,
        ..CloudOptions::new(url.clone(), key.clone())
    };
    Cloud::new(options, Arc::new(settings.catalogue.clone()))
}

fn loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The drain that the settings describe.
///
/// # Errors
/// A configuration error.
pub fn drain(
    settings: &Settings,
    cloud: Cloud,
    store: Arc<dyn crate::checkpoint::Store>,
    state: Arc<ReplicationState>,
) -> Result<Drain> {
    Ok(Drain {
        database_url: settings.require_database_url()?.clone(),
        source_id: settings.source.source_id.clone(),
        catalogue: Arc::new(settings.catalogue.clone()),
        cloud,
        store,
        limits: BatchLimits {
            rows: settings.delivery.batch_rows,
            bytes: settings.delivery.batch_bytes,
        },
        media_root: media_root(settings),
        state,
        handshake_every: HANDSHAKE_EVERY,
    })
}

fn uploads(settings: &Settings, cloud: Cloud, state: &ReplicationState) -> Result<FileLane> {
    let files = &settings.files;
    state
        .files
        .bandwidth
        .set_plan(files.bandwidth.clone(), files.budget);
    Ok(FileLane {
        database_url: settings.require_database_url()?.clone(),
        source_id: settings.source.source_id.clone(),
        catalogue: Arc::new(settings.catalogue.clone()),
        cloud,
        root: media_root(settings),
        storage: object_storage(settings)?,
        settle: settings.media.settle,
        rescan: settings.media.rescan,
        videos: settings.files.upload_videos,
        metrics: state.metrics.clone(),
        state: state.files.clone(),
    })
}

/// The media root that the settings describe.
fn media_root(settings: &Settings) -> MediaRoot {
    MediaRoot {
        path: settings.media.root.clone(),
        strip_prefix: settings.media.strip_prefix.clone(),
    }
}

async fn reconcile(settings: &Settings, cloud: &Cloud, state: &Arc<ReplicationState>) -> Result<Reconcile> {
    Reconcile::open(
        settings.require_database_url()?,
        settings.source.source_id.as_deref(),
        Arc::new(settings.catalogue.clone()),
        cloud.clone(),
        state.clone(),
        media_root(settings),
        PATIENCE,
    )
    .await
}
