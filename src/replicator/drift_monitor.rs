//! Looks at the capture while the replicator runs, and closes gaps as soon as capture is in place again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::Replicator;
use crate::catalogue::{Catalogue, Entity};
use crate::control::SyncRequest;
use crate::control::status::CaptureProblem;
use crate::deliver::ChangeOrigin;
use crate::error::{Code, Error, Result};
use crate::reconcile::NoObserver;
use crate::retry::{Backoff, waits};
use crate::source::connect::Session;
use crate::source::describe::DescribedTable;
use crate::source::drift::{self, EntityDrift};
use crate::source::{identity, install, parked_touches};
use crate::supervise::{NextRound, Supervisor};

/// The time between two looks for up to [`FEW_ENTITIES`]; for more it is as many times longer, so that the looks
/// cost the same share of the source's time.
const EVERY: Duration = Duration::from_secs(15);
const FEW_ENTITIES: u32 = 100;

/// The time between two looks at the capture of so many entities.
pub(super) fn every(entities: usize) -> Duration {
    let entities = u32::try_from(entities).unwrap_or(u32::MAX).max(FEW_ENTITIES);
    EVERY * entities / FEW_ENTITIES
}

/// What the drift monitor last saw.
#[derive(Debug, Default)]
pub(super) struct DriftSummary(Mutex<Vec<CaptureProblem>>);

impl DriftSummary {
    pub(super) fn problems(&self) -> Vec<CaptureProblem> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first problem, in words; what is broken now goes before what was missed.
    pub(super) fn reason(&self) -> Option<String> {
        let problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = problems
            .iter()
            .find(|problem| problem.broken)
            .or(problems.first())?;
        Some(match problems.len() {
            1 => first.reason.clone(),
            count => format!("{} (and {} more)", first.reason, count - 1),
        })
    }

    fn set(&self, problems: Vec<CaptureProblem>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }
}

/// What is wrong with each entity's capture, or was: for people.
pub(super) fn problems(
    catalogue: &Catalogue,
    watched: &[(DescribedTable, EntityDrift)],
) -> Vec<CaptureProblem> {
    of(catalogue, watched.iter().map(|(_, watched)| watched))
}

fn of<'a>(catalogue: &Catalogue, watched: impl Iterator<Item = &'a EntityDrift>) -> Vec<CaptureProblem> {
    catalogue
        .entities()
        .iter()
        .zip(watched)
        .filter_map(|(entity, watched)| {
            let misses = watched
                .wrong
                .as_ref()
                .is_some_and(|wrong| wrong.missed().is_some());
            let error = match (&watched.wrong, &watched.parked, &watched.gap) {
                (Some(wrong), _, _) if misses => wrong.error(entity),
                // It waits for an operator, who knows it.
                (_, Some(why), _) if why == parked_touches::PAUSED => return None,
                (_, Some(why), _) => parked(entity, why),
                (Some(wrong), None, _) => wrong.error(entity),
                (None, None, Some((gap, _))) => Error::config(
                    format!("say that the cloud has all of {}", entity.name),
                    gap.clone(),
                )
                .with_code(Code::CaptureGap)
                .remedy("a running replicator compares it with the cloud, and so does `cloud-sync sync`"),
                (None, None, None) => return None,
            };
            Some(CaptureProblem {
                entity: entity.name.clone(),
                broken: misses || watched.parked.is_some(),
                reason: error.to_string(),
            })
        })
        .collect()
}

/// The error of an entity that is parked, for people.
pub(super) fn parked(entity: &Entity, why: &str) -> Error {
    Error::config(
        format!("replicate {}", entity.name),
        format!("its changes wait in the site's database, and those of all other entities go on: {why}"),
    )
    .with_code(Code::Parked)
    .remedy("correct that: a running replicator tries again without help, and no change is lost")
}

/// One look at the capture: as [`drift::watch`], with gaps marked where changes may be missed or values changed
/// without a trigger, and triggers made again where that is all it takes. Returns how each entity is captured
/// after it.
///
/// # Errors
/// The source's.
async fn look(client: &Client, catalogue: &Catalogue) -> Result<Vec<EntityDrift>> {
    let watched = drift::watch(client, catalogue).await?;
    let tables = watched
        .iter()
        .map(|(described, watched)| (watched.id, &described.table));
    let mut touched = drift::note_shapes(client, tables).await?;
    for (entity, (described, watched)) in catalogue.entities().iter().zip(&watched) {
        let Some(wrong) = &watched.wrong else { continue };
        touched = true;
        if let Some(missed) = wrong.missed() {
            drift::mark(client, watched.id, &missed).await?;
        }
        if wrong.mends_itself()
            && described.unfit.is_none()
            && let Err(error) = install::attach(client, entity, &described.table).await
        {
            tracing::warn!("{error}");
        }
    }
    // Mostly all is as it was.
    let now = if touched {
        drift::watch(client, catalogue).await?
    } else {
        watched
    };
    Ok(now.into_iter().map(|(_, watched)| watched).collect())
}

/// What one look at the capture leaves for the next one.
struct GapRepair {
    session: Option<Session>,
    backoff: Backoff,
    /// When gaps that stay are compared again.
    sync_at: Instant,
}

impl Replicator {
    /// Looks again and again until `stop`.
    pub(super) async fn monitor_drift(&self, stop: &CancellationToken) {
        let every = self.drift_every;
        let supervisor = Supervisor::tireless("capture", every);
        let state = tokio::sync::Mutex::new(GapRepair {
            session: None,
            backoff: Backoff::within(every, waits::GAP_REPAIR_MOST),
            sync_at: Instant::now(),
        });
        let round = async || {
            let mut state = state.lock().await;
            let GapRepair {
                session,
                backoff,
                sync_at,
            } = &mut *state;
            let watched = self.look_at_capture(session).await?;
            supervisor.recovered();
            let gaps = self.note_capture(&watched);
            if gaps.is_empty() {
                backoff.reset();
                *sync_at = Instant::now();
            } else if *sync_at <= Instant::now() {
                let closed = tokio::select! {
                    () = stop.cancelled() => return Ok(NextRound::Never),
                    closed = self.close_gaps(gaps) => closed,
                };
                if let Err(error) = closed {
                    tracing::warn!("{error}");
                }
                // A gap that stays is not compared over and over.
                *sync_at = Instant::now() + backoff.next(None);
                self.note_capture(&self.look_at_capture(session).await?);
            }
            Ok(NextRound::After(every))
        };
        // It is tireless: it ends when it is stopped.
        let _ = supervisor.run(stop, |_| {}, round).await;
    }

    async fn look_at_capture(&self, session: &mut Option<Session>) -> Result<Vec<EntityDrift>> {
        let open = match session.take() {
            Some(open) => open,
            None => Session::open(self.live().settings.require_database_url()?, "drift").await?,
        };
        let watched = look(open.client(), &self.live().settings.catalogue).await?;
        *session = Some(open);
        Ok(watched)
    }

    /// Tells what was found, and answers the entities whose gap can be closed now.
    fn note_capture(&self, watched: &[EntityDrift]) -> Vec<String> {
        let live = self.live();
        let catalogue = &live.settings.catalogue;
        let problems = of(catalogue, watched.iter());
        let before = self.drift.problems();
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::error!(entity = problem.entity, "{}", problem.reason);
        }
        for problem in &before {
            if !problems.iter().any(|now| now.entity == problem.entity) {
                tracing::info!(
                    entity = problem.entity,
                    "its capture is in place, and nothing is missed"
                );
            }
        }
        let metrics = &self.state.metrics;
        let broken = problems.iter().filter(|problem| problem.broken).count();
        metrics.capture_broken.set(broken as i64);
        let gaps = watched.iter().filter(|watched| watched.gap.is_some()).count();
        metrics.capture_gaps.set(gaps as i64);
        for ((entity_index, _), watched) in catalogue.indexed().zip(watched) {
            let parked = watched.parked.as_ref();
            let is_parked = parked.is_some_and(|why| why != parked_touches::PAUSED);
            metrics.parked(entity_index).set(i64::from(is_parked));
        }
        self.drift.set(problems);
        let pauses = self.state.pauses();
        catalogue
            .entities()
            .iter()
            .zip(watched)
            .filter(|(entity, watched)| {
                // Rows of a parked entity cannot be compared, or would wait.
                watched.gap.is_some()
                    && pauses.of_entity(&entity.name).is_none()
                    && watched.parked.is_none()
                    && watched
                        .wrong
                        .as_ref()
                        .is_none_or(|wrong| wrong.missed().is_none())
            })
            .map(|(entity, _)| entity.name.clone())
            .collect()
    }

    /// Compares these entities with the cloud. Where the cloud tells keys only, every row is pushed.
    async fn close_gaps(&self, entities: Vec<String>) -> Result<()> {
        tracing::info!(?entities, "comparing with the cloud what may have been missed");
        let capabilities = match self.state.capabilities() {
            Some(capabilities) => capabilities,
            None => {
                let session = Session::open(self.live().settings.require_database_url()?, "drift").await?;
                let identity = identity::stored_identity_of(
                    session.client(),
                    self.live().settings.source.source_id.as_deref(),
                )
                .await?;
                let origin = ChangeOrigin::from(&identity);
                self.live().cloud.handshake(&origin).await?.capabilities
            }
        };
        let request = SyncRequest {
            force: !capabilities.changes,
            entities,
        };
        let report = self.sync(&request, &NoObserver).await?;
        for error in report.errors() {
            tracing::warn!("{error}");
        }
        Ok(())
    }
}
