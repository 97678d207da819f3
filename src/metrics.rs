//! What is counted and measured: one set of fields behind `/metrics`, the status and the dashboard.
//!
//! Names are constants and part of the contract with whoever scrapes them; counters get `_total` at the end when they
//! are written out. The fields are cheap to touch from the delivery path: atomics, and a counter of each entity that
//! is found by its entity_index in the catalogue, not by its name.

use crate::catalogue::EntityIndex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::error::Kind;
use crate::latency::{Latency, PerStep, Percentiles};

/// Changes that the cloud accepted, by entity.
pub const CHANGES_ACCEPTED: &str = "cloud_sync_changes_accepted";
/// Changes that the cloud refused for good.
pub const CHANGES_REFUSED: &str = "cloud_sync_changes_refused";
/// Changes that a later change of the same row superseded before they were sent.
pub const CHANGES_COLLAPSED: &str = "cloud_sync_changes_collapsed";
/// Changes that were not sent: the server has no call for them, or the cloud keeps such rows.
pub const CHANGES_NOT_SENT: &str = "cloud_sync_changes_not_sent";
/// Batches that were delivered.
pub const BATCHES: &str = "cloud_sync_batches";
/// Bytes of request bodies with changes, as they were sent.
pub const BYTES_SENT: &str = "cloud_sync_bytes_sent";
/// Changes that the cloud has not accepted.
pub const LAG_CHANGES: &str = "cloud_sync_lag_changes";
/// Age of the oldest change that the cloud has not accepted.
pub const LAG_SECONDS: &str = "cloud_sync_lag_seconds";
/// What the local checkpoint store takes on the disk.
pub const STORE_BYTES: &str = "cloud_sync_store_bytes";
/// The checkpoint's position.
pub const CHECKPOINT_POSITION: &str = "cloud_sync_checkpoint_position";
/// Refused changes that wait for a decision.
pub const QUARANTINE: &str = "cloud_sync_quarantine";
/// Media files that reached a state, by state.
pub const FILES: &str = "cloud_sync_files";
/// Media files that wait for their upload.
pub const FILES_WAITING: &str = "cloud_sync_files_waiting";
/// Bytes of uploaded media files.
pub const FILE_BYTES: &str = "cloud_sync_file_bytes";
/// The outbox's size in the source database.
pub const OUTBOX_BYTES: &str = "cloud_sync_outbox_bytes";
/// How fast the outbox grows.
pub const OUTBOX_GROWTH: &str = "cloud_sync_outbox_growth_bytes_per_second";
/// How much the outbox may still grow.
pub const OUTBOX_ROOM: &str = "cloud_sync_outbox_room_bytes";
/// When the outbox has used up its room, at the rate of the last minutes.
pub const OUTBOX_FULL: &str = "cloud_sync_outbox_full_seconds";
/// Entities whose changes may be missed now.
pub const CAPTURE_BROKEN: &str = "cloud_sync_capture_broken";
/// Entities of which changes were missed, and that are not compared with the cloud yet.
pub const CAPTURE_GAPS: &str = "cloud_sync_capture_gaps";
/// Whether an entity is parked, by entity: 1 while its changes wait and all others flow, else 0. The status says why.
pub const PARKED: &str = "cloud_sync_parked";
/// From a change's capture to the cloud's acceptance.
pub const DELIVERY_LATENCY: &str = "cloud_sync_delivery_latency_seconds";
/// What the steps of a batch's way took, by step.
pub const STEP: &str = "cloud_sync_step_seconds";
/// Failed requests to the cloud, by class.
pub const CLOUD_ERRORS: &str = "cloud_sync_cloud_errors";
/// Failed calls of the source database.
pub const SOURCE_ERRORS: &str = "cloud_sync_source_errors";
/// Finished syncs, by result.
pub const SYNCS: &str = "cloud_sync_syncs";

/// A gauge that holds a fraction.
pub type FractionGauge = Gauge<f64, AtomicU64>;

/// Everything that is counted and measured in one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    accepted: Vec<Counter>,
    parked: Vec<Gauge>,
    /// Changes that the cloud refused for good.
    pub refused: Counter,
    /// Changes that a later change of the same row superseded.
    pub collapsed: Counter,
    /// Changes that were not sent.
    pub not_sent: Counter,
    /// Delivered batches.
    pub batches: Counter,
    /// Bytes of request bodies with changes.
    pub bytes_sent: Counter,
    /// Changes that the cloud has not accepted.
    pub lag_changes: Gauge,
    /// Age of the oldest of them, in seconds.
    pub lag_seconds: FractionGauge,
    /// What the local checkpoint store takes on the disk, in bytes.
    pub store_bytes: Gauge,
    /// The checkpoint's position.
    pub checkpoint_position: Gauge,
    /// Refused changes that wait for a decision.
    pub quarantine: Gauge,
    /// Uploads of media files.
    pub files: FileMetrics,
    /// The outbox's size in bytes.
    pub outbox_bytes: Gauge,
    /// Bytes a second by which the outbox grows; not a number while that is not known.
    pub outbox_growth: FractionGauge,
    /// Bytes that the outbox may still grow by; not a number where that is not known.
    pub outbox_room: FractionGauge,
    /// Seconds until they are used up; not a number where the outbox does not grow.
    pub outbox_full_seconds: FractionGauge,
    /// Entities whose changes may be missed now.
    pub capture_broken: Gauge,
    /// Entities of which changes were missed.
    pub capture_gaps: Gauge,
    /// Failed calls of the source database.
    pub source_errors: Counter,
    /// Syncs without an error.
    pub syncs_done: Counter,
    /// Syncs with errors.
    pub syncs_failed: Counter,
    latency: Histogram,
    recent: Latency,
    steps: StepMetrics,
    cloud_errors: CloudErrors,
}

/// Uploads of media files.
#[derive(Debug)]
pub struct FileMetrics {
    /// Uploaded and confirmed.
    pub uploaded: Counter,
    /// Found in the cloud by content, so not uploaded.
    pub present: Counter,
    /// Named by a row, but not in the media folder.
    pub missing: Counter,
    /// Uploads that failed.
    pub failed: Counter,
    /// Files that wait for their upload.
    pub waiting: Gauge,
    /// Bytes of uploaded files.
    pub bytes: Counter,
}

#[derive(Debug)]
struct CloudErrors {
    unreachable: Counter,
    key: Counter,
    refused: Counter,
    protocol: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EntityLabel {
    entity: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

/// The steps of a batch's way. The total is not among the histograms, so that they can be added up.
#[derive(Debug)]
struct StepMetrics {
    seconds: Family<StepLabel, Histogram>,
    recent: PerStep<Latency>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    /// All at zero, for entities with these names in the catalogue's order.
    pub fn new<'a>(entities: impl IntoIterator<Item = &'a str>) -> Self {
        let mut registry = Registry::default();
        let by_entity = Family::<EntityLabel, Counter>::default();
        registry.register(
            CHANGES_ACCEPTED,
            "Changes that the cloud accepted",
            by_entity.clone(),
        );
        let parked_entity = Family::<EntityLabel, Gauge>::default();
        registry.register(
            PARKED,
            "Whether the entity is parked: its changes wait, and the status says why",
            parked_entity.clone(),
        );
        let (accepted, parked) = entities
            .into_iter()
            .map(|name| {
                let label = EntityLabel {
                    entity: name.to_owned(),
                };
                (
                    by_entity.get_or_create_owned(&label),
                    parked_entity.get_or_create_owned(&label),
                )
            })
            .unzip();
        let files = FileMetrics::register(&mut registry);
        let cloud_errors = CloudErrors::register(&mut registry);
        let syncs = Family::<ResultLabel, Counter>::default();
        registry.register(SYNCS, "Finished syncs", syncs.clone());
        // From a quarter of a millisecond to about an hour: an outage's backlog belongs in it too.
        let latency = Histogram::new((0..13).map(|nth| 0.000_25 * 4_f64.powi(nth)));
        registry.register(
            DELIVERY_LATENCY,
            "From a change's capture to the cloud's acceptance",
            latency.clone(),
        );
        let steps = StepMetrics::register(&mut registry);
        let lag_seconds = FractionGauge::default();
        registry.register(
            LAG_SECONDS,
            "Age of the oldest change that the cloud has not accepted",
            lag_seconds.clone(),
        );
        Self {
            accepted,
            parked,
            refused: counter(
                &mut registry,
                CHANGES_REFUSED,
                "Changes that the cloud refused for good",
            ),
            collapsed: counter(
                &mut registry,
                CHANGES_COLLAPSED,
                "Changes that a later change of the same row superseded",
            ),
            not_sent: counter(
                &mut registry,
                CHANGES_NOT_SENT,
                "Changes that the server has no call for, or that the cloud keeps",
            ),
            batches: counter(&mut registry, BATCHES, "Batches that were delivered"),
            bytes_sent: counter(&mut registry, BYTES_SENT, "Bytes of request bodies with changes"),
            lag_changes: gauge(
                &mut registry,
                LAG_CHANGES,
                "Changes that the cloud has not accepted",
            ),
            lag_seconds,
            store_bytes: gauge(
                &mut registry,
                STORE_BYTES,
                "What the local checkpoint store takes on the disk",
            ),
            checkpoint_position: gauge(&mut registry, CHECKPOINT_POSITION, "The checkpoint's position"),
            quarantine: gauge(
                &mut registry,
                QUARANTINE,
                "Refused changes that wait for a decision",
            ),
            files,
            outbox_bytes: gauge(
                &mut registry,
                OUTBOX_BYTES,
                "Size of the outbox in the source database",
            ),
            outbox_growth: fraction(&mut registry, OUTBOX_GROWTH, "How fast the outbox grows"),
            outbox_room: fraction(&mut registry, OUTBOX_ROOM, "How much the outbox may still grow"),
            outbox_full_seconds: fraction(
                &mut registry,
                OUTBOX_FULL,
                "When the outbox has used up its room, at the rate of the last minutes",
            ),
            capture_broken: gauge(
                &mut registry,
                CAPTURE_BROKEN,
                "Entities whose changes may be missed now",
            ),
            capture_gaps: gauge(
                &mut registry,
                CAPTURE_GAPS,
                "Entities of which changes were missed, and that are not compared with the cloud yet",
            ),
            source_errors: counter(
                &mut registry,
                SOURCE_ERRORS,
                "Failed calls of the source database",
            ),
            syncs_done: syncs.get_or_create_owned(&ResultLabel { result: "done" }),
            syncs_failed: syncs.get_or_create_owned(&ResultLabel { result: "failed" }),
            latency,
            recent: Latency::default(),
            steps,
            cloud_errors,
            registry,
        }
    }

    /// The accepted changes of the entity at `entity_index` in the catalogue.
    pub fn accepted(&self, entity_index: EntityIndex) -> &Counter {
        &self.accepted[entity_index.0]
    }

    /// Whether the entity at `entity_index` in the catalogue is parked: 1 or 0.
    pub fn parked(&self, entity_index: EntityIndex) -> &Gauge {
        &self.parked[entity_index.0]
    }

    /// The accepted changes of all entities.
    pub fn accepted_total(&self) -> u64 {
        self.accepted.iter().map(Counter::get).sum()
    }

    /// Notes how long a change took from its capture to the cloud's acceptance.
    pub fn delivered_after(&self, latency: Duration) {
        self.latency.observe(latency.as_secs_f64());
        self.recent.record(latency);
    }

    /// From a change's capture to the cloud's acceptance, over the recent changes; none before the first.
    pub fn latency(&self) -> Option<Percentiles> {
        self.recent.percentiles()
    }

    /// Notes what the steps of a batch's way took, those that it had.
    pub fn batch_took(&self, steps: &PerStep<Option<Duration>>) {
        self.steps.note(steps);
    }

    /// What the steps took, over the recent batches; none for a step that no batch had.
    pub fn steps(&self) -> PerStep<Option<Percentiles>> {
        self.steps.recent.map(Latency::percentiles)
    }

    /// Notes a failed request to the cloud. Errors from elsewhere are not counted here.
    pub fn cloud_error(&self, kind: Kind) {
        let counter = match kind {
            Kind::CloudUnreachable => &self.cloud_errors.unreachable,
            Kind::CloudAuth => &self.cloud_errors.key,
            Kind::CloudRefused => &self.cloud_errors.refused,
            Kind::CloudProtocol => &self.cloud_errors.protocol,
            _ => return,
        };
        counter.inc();
    }

    /// Everything as OpenMetrics text, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a string cannot fail; a scrape without a sample tells more than a broken one.
            Err(std::fmt::Error) => String::from("# EOF\n"),
        }
    }
}

impl FileMetrics {
    fn register(registry: &mut Registry) -> Self {
        let states = Family::<StateLabel, Counter>::default();
        registry.register(FILES, "Media files that reached a state", states.clone());
        let of = |state| states.get_or_create_owned(&StateLabel { state });
        Self {
            uploaded: of("uploaded"),
            present: of("present"),
            missing: of("missing"),
            failed: of("failed"),
            waiting: gauge(registry, FILES_WAITING, "Media files that wait for their upload"),
            bytes: counter(registry, FILE_BYTES, "Bytes of uploaded media files"),
        }
    }
}

impl StepMetrics {
    fn register(registry: &mut Registry) -> Self {
        // From an eighth of a millisecond to about half an hour.
        let buckets = || Histogram::new((0..13).map(|nth| 0.000_125 * 4_f64.powi(nth)));
        let seconds = Family::new_with_constructor(buckets as fn() -> Histogram);
        registry.register(STEP, "What the steps of a batch's way took", seconds.clone());
        let recent = PerStep::<Latency>::default();
        for (step, _) in recent.named() {
            seconds.get_or_create_owned(&StepLabel { step });
        }
        Self { seconds, recent }
    }

    fn note(&self, took: &PerStep<Option<Duration>>) {
        for ((step, took), (_, recent)) in took.named().into_iter().zip(self.recent.named()) {
            if let Some(took) = took {
                let seconds = self.seconds.get_or_create(&StepLabel { step });
                seconds.observe(took.as_secs_f64());
                recent.record(*took);
            }
        }
        if let Some(total) = took.total {
            self.recent.total.record(total);
        }
    }
}

impl CloudErrors {
    fn register(registry: &mut Registry) -> Self {
        let classes = Family::<ClassLabel, Counter>::default();
        registry.register(CLOUD_ERRORS, "Failed requests to the cloud", classes.clone());
        let of = |class| classes.get_or_create_owned(&ClassLabel { class });
        Self {
            unreachable: of("unreachable"),
            key: of("key"),
            refused: of("refused"),
            protocol: of("protocol"),
        }
    }
}

/// A counter without labels. The registry ends each help text with a dot.
fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

/// A fraction that is not known yet.
fn fraction(registry: &mut Registry, name: &str, help: &str) -> FractionGauge {
    let gauge = FractionGauge::default();
    gauge.set(f64::NAN);
    registry.register(name, help, gauge.clone());
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_promised() {
        let metrics = Metrics::new(["rooms", "cameras"]);
        metrics.accepted(EntityIndex(0)).inc_by(3);
        metrics.files.uploaded.inc();
        metrics.cloud_error(Kind::CloudAuth);
        metrics.cloud_error(Kind::Store);
        metrics.lag_seconds.set(1.5);
        metrics.delivered_after(Duration::from_millis(2));
        metrics.batch_took(&PerStep {
            wake: Some(Duration::from_millis(3)),
            total: Some(Duration::from_millis(9)),
            ..PerStep::default()
        });
        let text = metrics.encode();
        for line in [
            "cloud_sync_changes_accepted_total{entity=\"rooms\"} 3",
            "cloud_sync_changes_accepted_total{entity=\"cameras\"} 0",
            "cloud_sync_parked{entity=\"rooms\"} 0",
            "cloud_sync_changes_refused_total 0",
            "cloud_sync_batches_total 0",
            "cloud_sync_bytes_sent_total 0",
            "cloud_sync_lag_changes 0",
            "cloud_sync_lag_seconds 1.5",
            "cloud_sync_quarantine 0",
            "cloud_sync_files_total{state=\"uploaded\"} 1",
            "cloud_sync_outbox_bytes 0",
            "cloud_sync_delivery_latency_seconds_count 1",
            "# TYPE cloud_sync_step_seconds histogram",
            "cloud_sync_step_seconds_count{step=\"wake\"} 1",
            "cloud_sync_step_seconds_sum{step=\"wake\"} 0.003",
            "cloud_sync_step_seconds_bucket{le=\"0.002\",step=\"wake\"} 0",
            "cloud_sync_step_seconds_bucket{le=\"0.008\",step=\"wake\"} 1",
            "cloud_sync_step_seconds_count{step=\"read\"} 0",
            "cloud_sync_step_seconds_count{step=\"push\"} 0",
            "cloud_sync_step_seconds_count{step=\"apply\"} 0",
            "cloud_sync_step_seconds_count{step=\"commit\"} 0",
            "cloud_sync_cloud_errors_total{class=\"key\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("total\"}"), "the steps can be added up:\n{text}");
        assert_eq!(metrics.accepted_total(), 3);
    }

    #[test]
    fn steps_that_no_batch_had_are_not_known() {
        let metrics = Metrics::new(["rooms"]);
        assert_eq!(metrics.steps(), PerStep::default());
        for ms in [5, 7] {
            metrics.batch_took(&PerStep {
                push: Some(Duration::from_millis(ms)),
                apply: None,
                total: Some(Duration::from_millis(2 * ms)),
                ..PerStep::default()
            });
        }
        let steps = metrics.steps();
        let (low, high) = (5.0, 7.0);
        assert_eq!(
            steps.push.map(|push| (push.p50_ms, push.p99_ms)),
            Some((low, high))
        );
        assert_eq!(steps.total.map(|total| total.p99_ms), Some(2.0 * high));
        assert_eq!((steps.apply, steps.wake), (None, None));
    }
}
