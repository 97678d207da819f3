//! What is counted and measured: one set of fields behind `/metrics`, the status and the dashboard.
//!
//! [`table`] declares each metric once: name, kind, label, help. A new metric is a row there, a field of
//! [`Metrics`] here, and its line in [`Metrics::new`]. The fields are cheap to touch from the
//! delivery path: atomics, and a counter of each entity that is found by its index in the catalogue, not by
//! its name.

pub(crate) mod table;

use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::catalogue::EntityIndex;
use crate::error::Kind;
use crate::latency::{Latency, PerStep, Percentiles};
use table::MetricSpec;

/// A gauge that holds a fraction.
pub type FractionGauge = Gauge<f64, AtomicU64>;

/// A metric's label with its value.
type LabelValue = [(&'static str, Cow<'static, str>); 1];

/// Everything that is counted and measured in one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    accepted: Vec<Counter>,
    parked: Vec<Gauge>,
    paused: Vec<Gauge>,
    /// Whether everything is paused: 1 or 0.
    pub paused_all: Gauge,
    /// Whether files are paused: 1 or 0.
    pub paused_files: Gauge,
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

/// The steps of a batch's way. The total is not among the histograms, so that they can be added up.
#[derive(Debug)]
struct StepMetrics {
    seconds: Labelled<Histogram>,
    recent: PerStep<Latency>,
}

impl Metrics {
    /// All at zero, for entities with these names in the catalogue's order.
    pub fn new<'a>(entities: impl IntoIterator<Item = &'a str>) -> Self {
        let mut registry = Registry::default();
        let accepted =
            Labelled::<Counter>::register(&mut registry, &table::CHANGES_ACCEPTED, Counter::default);
        let parked = Labelled::<Gauge>::register(&mut registry, &table::PARKED, Gauge::default);
        let paused = Labelled::<Gauge>::register(&mut registry, &table::ENTITY_PAUSED, Gauge::default);
        let entities: Vec<String> = entities.into_iter().map(str::to_owned).collect();
        let accepted = entities.iter().map(|name| accepted.of(name.clone())).collect();
        let parked = entities.iter().map(|name| parked.of(name.clone())).collect();
        let paused = entities.into_iter().map(|name| paused.of(name)).collect();
        let paused_parts = Labelled::<Gauge>::register(&mut registry, &table::PAUSED, Gauge::default);
        let syncs = Labelled::<Counter>::register(&mut registry, &table::SYNCS, Counter::default);
        // From a quarter of a millisecond to about an hour: an outage's backlog belongs in it too.
        let latency = Histogram::new((0..13).map(|nth| 0.000_25 * 4_f64.powi(nth)));
        let latency = register(&mut registry, &table::DELIVERY_LATENCY, latency);
        Self {
            accepted,
            parked,
            paused,
            paused_all: paused_parts.of("all"),
            paused_files: paused_parts.of("files"),
            refused: counter(&mut registry, &table::CHANGES_REFUSED),
            collapsed: counter(&mut registry, &table::CHANGES_COLLAPSED),
            not_sent: counter(&mut registry, &table::CHANGES_NOT_SENT),
            batches: counter(&mut registry, &table::BATCHES),
            bytes_sent: counter(&mut registry, &table::BYTES_SENT),
            lag_changes: gauge(&mut registry, &table::LAG_CHANGES),
            lag_seconds: fraction(&mut registry, &table::LAG_SECONDS, 0.0),
            store_bytes: gauge(&mut registry, &table::STORE_BYTES),
            checkpoint_position: gauge(&mut registry, &table::CHECKPOINT_POSITION),
            quarantine: gauge(&mut registry, &table::QUARANTINE),
            files: FileMetrics::register(&mut registry),
            outbox_bytes: gauge(&mut registry, &table::OUTBOX_BYTES),
            outbox_growth: fraction(&mut registry, &table::OUTBOX_GROWTH, f64::NAN),
            outbox_room: fraction(&mut registry, &table::OUTBOX_ROOM, f64::NAN),
            outbox_full_seconds: fraction(&mut registry, &table::OUTBOX_FULL, f64::NAN),
            capture_broken: gauge(&mut registry, &table::CAPTURE_BROKEN),
            capture_gaps: gauge(&mut registry, &table::CAPTURE_GAPS),
            source_errors: counter(&mut registry, &table::SOURCE_ERRORS),
            syncs_done: syncs.of("done"),
            syncs_failed: syncs.of("failed"),
            latency,
            recent: Latency::default(),
            steps: StepMetrics::register(&mut registry),
            cloud_errors: CloudErrors::register(&mut registry),
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

    /// Whether the entity at `entity_index` in the catalogue is paused: 1 or 0.
    pub fn paused(&self, entity_index: EntityIndex) -> &Gauge {
        &self.paused[entity_index.0]
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
        let states = Labelled::<Counter>::register(registry, &table::FILES, Counter::default);
        Self {
            uploaded: states.of("uploaded"),
            present: states.of("present"),
            missing: states.of("missing"),
            failed: states.of("failed"),
            waiting: gauge(registry, &table::FILES_WAITING),
            bytes: counter(registry, &table::FILE_BYTES),
        }
    }
}

impl StepMetrics {
    fn register(registry: &mut Registry) -> Self {
        // From an eighth of a millisecond to about half an hour.
        let buckets = || Histogram::new((0..13).map(|nth| 0.000_125 * 4_f64.powi(nth)));
        let seconds = Labelled::<Histogram>::register(registry, &table::STEP, buckets);
        let recent = PerStep::<Latency>::default();
        for (step, _) in recent.named() {
            seconds.of(step);
        }
        Self { seconds, recent }
    }

    fn note(&self, took: &PerStep<Option<Duration>>) {
        for ((step, took), (_, recent)) in took.named().into_iter().zip(self.recent.named()) {
            if let Some(took) = took {
                self.seconds.of(step).observe(took.as_secs_f64());
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
        let classes = Labelled::<Counter>::register(registry, &table::CLOUD_ERRORS, Counter::default);
        Self {
            unreachable: classes.of("unreachable"),
            key: classes.of("key"),
            refused: classes.of("refused"),
            protocol: classes.of("protocol"),
        }
    }
}

/// What is registered: a metric, or a family of metrics of one type.
trait Registered: Metric + TypedMetric + Clone {}

impl<M: Metric + TypedMetric + Clone> Registered for M {}

/// A metric with a label: one series for each of the label's values.
#[derive(Debug)]
struct Labelled<M> {
    label: &'static str,
    series: Family<LabelValue, M, fn() -> M>,
}

impl<M: Registered> Labelled<M> {
    fn register(registry: &mut Registry, spec: &MetricSpec, make: fn() -> M) -> Self {
        Self {
            label: spec.label.map_or("", |label| label.name),
            series: register(registry, spec, Family::new_with_constructor(make)),
        }
    }

    /// The series with this value of the label.
    fn of(&self, value: impl Into<Cow<'static, str>>) -> M {
        self.series.get_or_create_owned(&[(self.label, value.into())])
    }
}

fn counter(registry: &mut Registry, spec: &MetricSpec) -> Counter {
    register(registry, spec, Counter::default())
}

fn gauge(registry: &mut Registry, spec: &MetricSpec) -> Gauge {
    register(registry, spec, Gauge::default())
}

/// A gauge that holds a fraction, `first` to begin with.
fn fraction(registry: &mut Registry, spec: &MetricSpec, first: f64) -> FractionGauge {
    let gauge = FractionGauge::default();
    gauge.set(first);
    register(registry, spec, gauge)
}

fn register<M: Registered>(registry: &mut Registry, spec: &MetricSpec, metric: M) -> M {
    debug_assert_eq!(spec.kind.word(), M::TYPE.as_str(), "the kind of {}", spec.name);
    registry.register(spec.name, spec.help, metric.clone());
    metric
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::table::METRICS;
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
    fn the_table_is_what_is_written_out() {
        let text = Metrics::new(["rooms"]).encode();
        let written = |prefix: &str| -> BTreeSet<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
            lines.map(str::to_owned).collect()
        };
        let kinds = METRICS
            .iter()
            .map(|spec| format!("{} {}", spec.name, spec.kind.word()));
        assert_eq!(written("# TYPE "), kinds.collect());
        let helps = METRICS.iter().map(|spec| format!("{} {}.", spec.name, spec.help));
        assert_eq!(written("# HELP "), helps.collect());
        for spec in METRICS {
            let Some(label) = spec.label else { continue };
            let values = if label.values.is_empty() {
                &["rooms"]
            } else {
                label.values
            };
            let series = text.lines().filter(|line| line.starts_with(spec.name));
            let found: BTreeSet<&str> = series
                .filter_map(|line| line.split_once(&format!("{}=\"", label.name)))
                .filter_map(|(_, rest)| rest.split('"').next())
                .collect();
            assert_eq!(found, values.iter().copied().collect(), "{}", spec.name);
        }
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
