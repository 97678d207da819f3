//! The one table of metrics: name, kind, label and help of each. The registry is filled from it, and
//! docs/reference/metrics.md is generated from it.
//!
//! A new metric is a row here, a field of [`Metrics`](super::Metrics), and its line in `Metrics::new`.
//!
//! Names are a contract with whoever scrapes them: a metric is never renamed.

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    /// Only rises, until the process ends. Its name is written with `_total` at the end.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

impl MetricKind {
    /// Its word in the OpenMetrics format.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label: its name, and its values if they are known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MetricLabel {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its values; empty if they come from the catalogue.
    pub(crate) values: &'static [&'static str],
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MetricSpec {
    /// Its name, without the `_total` of a counter.
    pub(crate) name: &'static str,
    /// Its kind.
    pub(crate) kind: MetricKind,
    /// Its label, if it has one.
    pub(crate) label: Option<MetricLabel>,
    /// What it says, without a full stop: the registry adds one.
    pub(crate) help: &'static str,
}

impl MetricSpec {
    const fn by(mut self, name: &'static str, values: &'static [&'static str]) -> Self {
        self.label = Some(MetricLabel { name, values });
        self
    }
}

const fn spec(kind: MetricKind, name: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec {
        name,
        kind,
        label: None,
        help,
    }
}

const fn counter(name: &'static str, help: &'static str) -> MetricSpec {
    spec(MetricKind::Counter, name, help)
}

const fn gauge(name: &'static str, help: &'static str) -> MetricSpec {
    spec(MetricKind::Gauge, name, help)
}

const fn histogram(name: &'static str, help: &'static str) -> MetricSpec {
    spec(MetricKind::Histogram, name, help)
}

/// Declares each metric as a constant, and the table of all of them.
macro_rules! metrics {
    ($($constant:ident = $spec:expr;)*) => {
        $(pub(crate) const $constant: MetricSpec = $spec;)*

        /// Every metric, in the order of the reference.
        #[cfg(test)]
        pub(crate) const METRICS: &[MetricSpec] = &[$($constant),*];
    };
}

metrics! {
    LAG_CHANGES = gauge("cloud_sync_lag_changes", "Changes that the cloud has not accepted");
    LAG_SECONDS = gauge(
        "cloud_sync_lag_seconds",
        "Age of the oldest change that the cloud has not accepted",
    );
    DELIVERY_LATENCY = histogram(
        "cloud_sync_delivery_latency_seconds",
        "Time from a change's capture to the cloud's acceptance",
    );
    STEP = histogram(
        "cloud_sync_step_seconds",
        "Time that each step of a batch's way took",
    )
    .by("step", &["wake", "read", "push", "apply", "commit"]);
    CHANGES_ACCEPTED = counter("cloud_sync_changes_accepted", "Changes that the cloud accepted")
        .by("entity", &[]);
    CHANGES_REFUSED = counter("cloud_sync_changes_refused", "Changes that the cloud refused for good");
    CHANGES_COLLAPSED = counter(
        "cloud_sync_changes_collapsed",
        "Changes that a later change of the same row superseded before they were sent",
    );
    CHANGES_NOT_SENT = counter(
        "cloud_sync_changes_not_sent",
        "Changes that were not sent: the server has no call for them, or the cloud keeps such rows",
    );
    BATCHES = counter("cloud_sync_batches", "Batches that were delivered");
    BYTES_SENT = counter("cloud_sync_bytes_sent", "Bytes of request bodies with changes, as they were sent");
    CHECKPOINT_POSITION = gauge("cloud_sync_checkpoint_position", "The checkpoint's position");
    QUARANTINE = gauge("cloud_sync_quarantine", "Refused changes that wait for a decision");
    PARKED = gauge(
        "cloud_sync_parked",
        "1 while the entity is parked: its changes wait, all others flow, and the status says why; else 0",
    )
    .by("entity", &[]);
    PAUSED = gauge("cloud_sync_paused", "1 while an operator has paused everything, or files; else 0")
        .by("what", &["all", "files"]);
    ENTITY_PAUSED = gauge("cloud_sync_entity_paused", "1 while an operator has paused the entity; else 0")
        .by("entity", &[]);
    CAPTURE_BROKEN = gauge("cloud_sync_capture_broken", "Entities whose changes may be missed now");
    CAPTURE_GAPS = gauge(
        "cloud_sync_capture_gaps",
        "Entities of which changes were missed, and that are not compared with the cloud yet",
    );
    FILES = counter("cloud_sync_files", "Media files that reached a state")
        .by("state", &["uploaded", "present", "missing", "failed"]);
    FILES_WAITING = gauge("cloud_sync_files_waiting", "Media files that wait for their upload");
    FILE_BYTES = counter("cloud_sync_file_bytes", "Bytes of uploaded media files");
    OUTBOX_BYTES = gauge("cloud_sync_outbox_bytes", "Size of the outbox in the site's database, in bytes");
    OUTBOX_GROWTH = gauge(
        "cloud_sync_outbox_growth_bytes_per_second",
        "Growth of the outbox over the last minutes; NaN if it is not known",
    );
    OUTBOX_ROOM = gauge(
        "cloud_sync_outbox_room_bytes",
        "Bytes that the outbox may still grow by; NaN if that is not known",
    );
    OUTBOX_FULL = gauge(
        "cloud_sync_outbox_full_seconds",
        "Estimated seconds until the outbox's disk is full, from recent growth; NaN if the outbox does not grow",
    );
    STORE_BYTES = gauge("cloud_sync_store_bytes", "Size of the local checkpoint store on disk, in bytes");
    CLOUD_ERRORS = counter("cloud_sync_cloud_errors", "Failed requests to the cloud")
        .by("class", &["unreachable", "key", "refused", "protocol"]);
    SOURCE_ERRORS = counter("cloud_sync_source_errors", "Failed calls of the site's database");
    SYNCS = counter("cloud_sync_syncs", "Finished syncs").by("result", &["done", "failed"]);
}
