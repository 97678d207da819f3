//! The library's face: a site that another program replicates from within itself.
//!
//! [`CloudSync`] is the site's settings, checked. Each call works with a replicator of its own: [`CloudSync::start`]
//! with one that runs until its [`RunHandle`] is stopped or dropped, [`CloudSync::sync_all`] with one that ends
//! with the comparison.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::catalogue::{Catalogue, Entity};
use crate::checkpoint::Checkpoint;
use crate::config::{Settings, SettingsBuilder};
use crate::control::SyncRequest;
use crate::control::status::StatusReport;
use crate::drain::{Condition, ReplicationState};
use crate::error::{Error, Result};
use crate::reconcile::report::SyncReport;
use crate::replicator::Replicator;

/// A site that can be replicated to its cloud.
///
/// ```no_run
/// use cloud_sync::{CloudSync, Entity};
///
/// # async fn example() -> Result<(), cloud_sync::Error> {
/// let site = CloudSync::builder()
///     .database_url("postgresql://replicator@localhost/school")
///     .cloud("https://cloud.example/api", "the-key-of-the-site")
///     .entities([Entity::new("rooms", "tbl_room", &["room_id"])])
///     .build()?;
/// // Capture is in the site's database from now on, whether or not a replicator runs.
/// site.install().await?;
/// let running = site.start().await?;
/// println!("{:?} changes wait", running.status().await?.lag.map(|lag| lag.changes));
/// running.stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CloudSync {
    settings: Settings,
}

impl CloudSync {
    /// Collects the settings of a site.
    pub fn builder() -> CloudSyncBuilder {
        CloudSyncBuilder::default()
    }

    /// The entities that the settings name, in their order. Those of patterns are in the site's database only.
    pub fn entities(&self) -> &[Entity] {
        self.settings.catalogue.entities()
    }

    /// Installs capture in the site's database, or brings it up to date; can be repeated.
    ///
    /// # Errors
    /// The site's database's, or a configuration error that names each entity that does not fit its table.
    pub async fn install(&self) -> Result<()> {
        Replicator::install(&self.settings).await
    }

    /// Compares the site with its cloud once, pushes what the cloud lacks, and waits until it is there. No
    /// replicator may run for this site: use [`RunHandle::sync_all`] then.
    ///
    /// # Errors
    /// What prevents the comparison as a whole; the errors of single entities are in the report.
    pub async fn sync_all(&self) -> Result<SyncReport> {
        Replicator::sync_once(&self.settings, &SyncRequest::default()).await
    }

    /// Replicates from now on, in tasks of this runtime. If the site or the cloud is away, the replicator waits
    /// for it: that is an event, and no error.
    ///
    /// # Errors
    /// What a person must mend first: configuration, a taken port, a store that cannot be written, a
    /// catalogue that only the database can complete while it is away.
    pub async fn start(&self) -> Result<RunHandle> {
        let settings = Replicator::complete_settings(&self.settings).await?;
        let replicator = Replicator::new(&settings)?;
        let (serving, served) = oneshot::channel();
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let run = replicator.clone().run(stop.clone(), |address| {
            // Whoever waits for it may have given up.
            let _ = serving.send(address);
        });
        let task = tokio::spawn({
            let guard = ended.clone().drop_guard();
            async move {
                let _guard = guard;
                run.await
            }
        });
        match served.await {
            Ok(address) => Ok(RunHandle {
                replicator,
                address,
                task,
                ended,
                stop: stop.drop_guard(),
            }),
            Err(_) => {
                joined(task.await)?;
                let cause = std::io::Error::other("it ended before it served");
                Err(Error::local("start the replicator", cause))
            }
        }
    }
}

/// Collects the settings of a [`CloudSync`]. A setting that is not set has its default. No file and no environment
/// is read.
#[derive(Debug, Clone, Default)]
pub struct CloudSyncBuilder {
    settings: SettingsBuilder,
    entities: Option<Vec<Entity>>,
}

impl CloudSyncBuilder {
    /// The site's database: `source.database_url`.
    #[must_use]
    pub fn database_url(self, url: &str) -> Self {
        self.set("source.database_url", url)
    }

    /// The cloud's base URL and the site's key: `cloud.url` and `cloud.key`.
    #[must_use]
    pub fn cloud(self, url: &str, key: &str) -> Self {
        self.set("cloud.url", url).set("cloud.key", key)
    }

    /// The folder that file columns are relative to: `media.root`.
    #[must_use]
    pub fn media_root(mut self, folder: impl AsRef<Path>) -> Self {
        self.settings = self.settings.media_root(folder);
        self
    }

    /// The folder of the checkpoint store: `store.path`.
    #[must_use]
    pub fn store(mut self, folder: impl AsRef<Path>) -> Self {
        self.settings = self.settings.store(folder);
        self
    }

    /// What is replicated; parents come before their children by themselves. If neither this nor
    /// `catalogue.tables` is set, it is the built-in catalogue of a college.
    #[must_use]
    pub fn entities(mut self, entities: impl IntoIterator<Item = Entity>) -> Self {
        self.entities = Some(entities.into_iter().collect());
        self
    }

    /// Sets any setting by its name, with its value as text, as in `.set("catalogue.tables", "public.*")`. A
    /// later value overrides an earlier one.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings = self.settings.set(name, value);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A configuration error that names the setting or the entity, and what is right.
    pub fn build(self) -> Result<CloudSync> {
        let settings = match self.entities {
            Some(entities) => self.settings.catalogue(Catalogue::new(entities)?),
            None => self.settings,
        };
        Ok(CloudSync {
            settings: settings.build()?,
        })
    }
}

/// A replicator that runs. If this is dropped, the replicator ends in the background.
pub struct RunHandle {
    replicator: Arc<Replicator>,
    address: SocketAddr,
    task: JoinHandle<Result<()>>,
    ended: CancellationToken,
    /// Tells the replicator to end when it is dropped.
    stop: DropGuard,
}

impl RunHandle {
    /// Where the operator API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that an operator wants to know now.
    ///
    /// # Errors
    /// The site's database's.
    pub async fn status(&self) -> Result<StatusReport> {
        self.replicator.report().await
    }

    /// Compares the site with its cloud, and pushes what the cloud lacks; replication goes on meanwhile.
    ///
    /// # Errors
    /// What prevents the comparison as a whole; the errors of single entities are in the report.
    pub async fn sync_all(&self) -> Result<SyncReport> {
        let request = SyncRequest::default();
        self.replicator
            .sync(&request, &crate::reconcile::NoObserver)
            .await
    }

    /// What happens from now on, the present condition first. It ends with the replicator. Events that nobody
    /// takes are not kept: what happened meanwhile is told as one.
    pub fn events(&self) -> impl Stream<Item = SyncEvent> + Send + Unpin + use<> {
        let state = self.replicator.state();
        let events = Events {
            conditions: state.conditions(),
            checkpoints: state.checkpoints(),
            told: None,
            accepted: state.metrics.accepted_total(),
            refused: state.metrics.refused.get(),
            waiting: VecDeque::new(),
            ended: self.ended.clone(),
            state,
        };
        Box::pin(futures::stream::unfold(events, |mut events| async move {
            Some((events.next().await?, events))
        }))
    }

    /// Waits until the replicator ends by itself, which it does only with an error that a person must mend.
    ///
    /// # Errors
    /// That error.
    pub async fn ended(&mut self) -> Result<()> {
        joined((&mut self.task).await)
    }

    /// Ends the replicator in order: it finishes or gives up the batch at hand, and commits its checkpoint.
    ///
    /// # Errors
    /// The error with which it had ended before.
    pub async fn stop(self) -> Result<()> {
        drop(self.stop);
        joined(self.task.await)
    }
}

fn joined(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.map_err(|error| Error::local("run the replicator", std::io::Error::other(error)))?
}

/// Something that a running replicator tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncEvent {
    /// Changes go to the cloud as they are captured.
    Replicating,
    /// Nothing goes to the cloud, for this reason; capture goes on.
    Waiting(String),
    /// The cloud has accepted so many changes since this was last told.
    Accepted(u64),
    /// The cloud has refused so many changes for good since this was last told: they are in quarantine.
    Refused(u64),
}

/// Where a stream of events is.
struct Events {
    state: Arc<ReplicationState>,
    conditions: watch::Receiver<Condition>,
    checkpoints: watch::Receiver<Option<Checkpoint>>,
    /// The last condition that was told.
    told: Option<SyncEvent>,
    accepted: u64,
    refused: u64,
    waiting: VecDeque<SyncEvent>,
    ended: CancellationToken,
}

impl Events {
    async fn next(&mut self) -> Option<SyncEvent> {
        loop {
            let has_ended = self.ended.is_cancelled();
            self.look();
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if has_ended {
                return None;
            }
            // The senders live as long as the state does.
            tokio::select! {
                () = self.ended.cancelled() => {}
                _ = self.conditions.changed() => {}
                _ = self.checkpoints.changed() => {}
            }
        }
    }

    fn look(&mut self) {
        self.checkpoints.mark_unchanged();
        let condition = match &*self.conditions.borrow_and_update() {
            Condition::Starting => None,
            condition => Some(match condition.reason() {
                None => SyncEvent::Replicating,
                Some(reason) => SyncEvent::Waiting(reason.to_owned()),
            }),
        };
        if condition.is_some() && condition != self.told {
            self.told.clone_from(&condition);
            self.waiting.extend(condition);
        }
        let metrics = &self.state.metrics;
        let mut count = |last: &mut u64, now: u64, event: fn(u64) -> SyncEvent| {
            let more = now.saturating_sub(*last);
            *last = now;
            if more > 0 {
                self.waiting.push_back(event(more));
            }
        };
        count(&mut self.accepted, metrics.accepted_total(), SyncEvent::Accepted);
        count(&mut self.refused, metrics.refused.get(), SyncEvent::Refused);
    }
}
