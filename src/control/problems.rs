//! What needs somebody, by the status alone, in words: the page's sentence and the alerts ask the same questions
//! here, so that they never disagree.

use super::status::{CaptureProblem, StatusReport};
use super::words::{count, span, verb};

/// A file may come so long after the row that names it, in seconds.
const FILE_FOLLOWS: f64 = 300.0;

/// A disk that is full sooner than this needs somebody, in seconds.
pub(crate) const DISK_SOON: f64 = 3.0 * 86_400.0;

/// A burst of changes may take so long to be delivered, in seconds.
const BURST: f64 = 600.0;

/// A disk that is full sooner than this needs somebody at once, in seconds.
const DISK_AT_ONCE: f64 = 3_600.0;

/// The entities whose changes wait or may be missed, and the first one's problem; `None` if there are none.
pub(super) fn broken_entities(status: &StatusReport) -> Option<(String, &CaptureProblem)> {
    let mut broken = status.capture.iter().filter(|problem| problem.broken);
    let first = broken.next()?;
    let headline = match broken.count() as u64 {
        0 => format!("Changes of {} may wait or be missed.", first.entity),
        more => format!(
            "Changes of {} and {} may wait or be missed.",
            first.entity,
            count(more, "other entity", "other entities")
        ),
    };
    Some((headline, first))
}

/// Capture is not in place.
pub(crate) fn broken_capture(status: &StatusReport) -> Option<String> {
    let (headline, first) = broken_entities(status)?;
    Some(format!("{headline} {}", sentence_case(&first.reason)))
}

/// Rows are in quarantine.
pub(crate) fn quarantine(status: &StatusReport) -> Option<String> {
    let rows = status.quarantine.filter(|&rows| rows > 0)?;
    Some(format!(
        "{} {} in quarantine: the cloud lacks {} present state.",
        count(rows, "row", "rows"),
        verb(rows, "is", "are"),
        verb(rows, "its", "their")
    ))
}

/// Files are missing that should have come by now.
pub(crate) fn missing_files(status: &StatusReport) -> Option<String> {
    let files = &status.files;
    let may_follow = files
        .missing_seconds
        .is_some_and(|seconds| seconds < FILE_FOLLOWS);
    (files.missing > 0 && !may_follow).then(|| {
        format!(
            "{} {} not in the media folder",
            count(files.missing, "file", "files"),
            verb(files.missing, "is", "are")
        )
    })
}

/// Files could not be sent.
pub(crate) fn failed_files(status: &StatusReport) -> Option<String> {
    let failed = status.files.failed;
    (failed > 0).then(|| format!("{} could not be sent", count(failed, "file", "files")))
}

/// In how many seconds the outbox's disk is full.
pub(super) fn disk_lasts(status: &StatusReport) -> Option<f64> {
    status.outbox_growth?.full_in_seconds
}

/// The outbox's disk is full within so many seconds. What is delivered while it comes fills no disk: something
/// must wait for a while, unless it is a matter of an hour.
pub(crate) fn disk(status: &StatusReport, within: f64) -> Option<String> {
    let seconds = disk_lasts(status).filter(|seconds| *seconds < within)?;
    let waits = status
        .lag
        .is_some_and(|lag| lag.changes > 0 && lag.age_seconds >= BURST);
    if !waits && seconds > DISK_AT_ONCE {
        return None;
    }
    Some(format!(
        "The outbox's disk is full in {} at this rate.",
        span(seconds)
    ))
}

/// The cloud refuses the key.
pub(crate) fn key_refused(status: &StatusReport) -> String {
    let reason = status.reason.as_deref().map(sentence_case);
    match reason {
        Some(reason) => format!("The cloud refuses our key. {reason}"),
        None => "The cloud refuses our key.".to_owned(),
    }
}

/// An error's text as a sentence.
pub(crate) fn sentence_case(text: &str) -> String {
    let mut chars = text.chars();
    let mut said: String = match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => return String::new(),
    };
    if !said.ends_with(['.', '!', '?']) {
        said.push('.');
    }
    said
}
