//! Everything that the page shows at one time, in words.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};

use super::chart::Chart;
use super::sentence::{Sentence, sentence};
use crate::control::lag_history::{LagHistory, LagRange};
use crate::control::problems::{DISK_SOON, sentence_case};
use crate::control::status::{LastSync, RunningSync, StatusReport};
use crate::control::words::{self, count, number, seconds_between, size, span, time};
use crate::control::{Overview, Pause, SourceOverview};
use crate::drain::{Incident, IncidentKind, Peer};
use crate::quarantine::{QuarantineEntry, may_be_accepted_later};
use crate::source::file_state::FileState;
use crate::source::overview::RecentFile;

/// Everything that the page shows.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) site: String,
    /// Whether the source has answered.
    pub(super) knows_source: bool,
    pub(super) sentence: Sentence,
    pub(super) last_accepted: Option<Moment>,
    pub(super) latency: Option<String>,
    pub(super) charts: Vec<Chart>,
    pub(super) lag_now: String,
    pub(super) sync: SyncView,
    pub(super) entities: Vec<EntityRow>,
    pub(super) accepted: String,
    pub(super) quarantine: Option<QuarantineView>,
    pub(super) files: FilesView,
    /// The pause of everything, in words.
    pub(super) paused: Option<String>,
    pub(super) facts: Vec<Fact>,
    pub(super) incidents: Vec<IncidentRow>,
    pub(super) problems: Vec<String>,
}

/// A time, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) iso: String,
    pub(super) text: String,
    /// How long ago it was.
    pub(super) ago: String,
}

#[derive(Debug, Clone)]
pub(super) struct SyncView {
    pub(super) running: Option<RunningView>,
    pub(super) last: Option<LastView>,
    pub(super) next: Option<(Moment, String)>,
    /// Why the sync that somebody asked for did not run.
    pub(super) refused: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct RunningView {
    pub(super) since: Moment,
    pub(super) text: String,
    pub(super) done: u64,
    pub(super) rows: u64,
}

#[derive(Debug, Clone)]
pub(super) struct LastView {
    pub(super) finished: Moment,
    pub(super) success: bool,
    pub(super) text: String,
    pub(super) pushed: Vec<(String, String)>,
    pub(super) errors: Vec<String>,
    pub(super) more_errors: usize,
}

#[derive(Debug, Clone)]
pub(super) struct EntityRow {
    pub(super) name: String,
    /// Rows within its retention, at the last comparison.
    pub(super) compared: Option<String>,
    pub(super) accepted: String,
    pub(super) waiting: Option<Amount>,
    pub(super) quarantined: Option<Amount>,
    /// Its pause, in words.
    pub(super) paused: Option<String>,
}

/// A number in a table.
#[derive(Debug, Clone)]
pub(super) struct Amount {
    pub(super) text: String,
    /// Whether it is not zero.
    pub(super) is_some: bool,
}

impl Amount {
    fn of(amounts: &BTreeMap<String, u64>, name: &str) -> Self {
        let amount = amounts.get(name).copied().unwrap_or_default();
        Self {
            text: number(amount),
            is_some: amount > 0,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct QuarantineView {
    pub(super) total: u64,
    pub(super) rows: Vec<QuarantineRow>,
    pub(super) more: u64,
}

#[derive(Debug, Clone)]
pub(super) struct QuarantineRow {
    pub(super) position: i64,
    pub(super) entity: String,
    pub(super) key: String,
    pub(super) what: &'static str,
    pub(super) reason: String,
    pub(super) refused: Moment,
    pub(super) attempts: String,
    /// Whether it is sent again without an operator.
    pub(super) by_itself: bool,
}

#[derive(Debug, Clone)]
pub(super) struct FilesView {
    pub(super) groups: Vec<FileGroup>,
    pub(super) notes: Vec<String>,
    /// The pause of files, in words.
    pub(super) paused: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct FileGroup {
    pub(super) title: &'static str,
    pub(super) class: &'static str,
    pub(super) count: u64,
    pub(super) shown: String,
    pub(super) files: Vec<FileRow>,
    /// What to do.
    pub(super) remedy: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub(super) struct FileRow {
    pub(super) path: String,
    pub(super) text: String,
}

#[derive(Debug, Clone)]
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) class: &'static str,
}

#[derive(Debug, Clone)]
pub(super) struct IncidentRow {
    pub(super) since: Moment,
    pub(super) what: &'static str,
    pub(super) lasted: String,
    pub(super) is_over: bool,
    pub(super) reason: String,
}

/// What a view is made of.
pub(super) struct Seen<'a> {
    pub(super) status: &'a StatusReport,
    pub(super) overview: &'a Overview,
    pub(super) history: &'a LagHistory,
    pub(super) refused_sync: Option<&'a str>,
    pub(super) now: Timestamp,
    pub(super) zone: &'a TimeZone,
}

/// Errors of a sync that are shown.
const ERRORS_SHOWN: usize = 10;

impl View {
    pub(super) fn new(seen: &Seen<'_>) -> Self {
        let Seen {
            status,
            overview,
            now,
            ..
        } = *seen;
        let source = overview.source.as_ref();
        let sentence = sentence(status, now);
        let lag = status.lag;
        Self {
            site: status.source.id.clone().unwrap_or_default(),
            knows_source: source.is_some(),
            last_accepted: status.last_accepted_at.map(|at| seen.moment(at)),
            latency: status.latency.as_ref().map(|latency| {
                format!(
                    "From commit to acceptance: half of the changes take {}, and 99 of 100 at most {}.",
                    milliseconds(latency.p50_ms),
                    milliseconds(latency.p99_ms)
                )
            }),
            charts: LagRange::ALL
                .into_iter()
                .map(|range| {
                    let lags = seen.history.lags(range, now.as_second().max(0) as u64);
                    Chart::new(range, &lags, now, seen.zone)
                })
                .collect(),
            lag_now: match lag {
                None => "not known".to_owned(),
                Some(lag) if lag.changes == 0 => "none".to_owned(),
                Some(lag) => span(lag.age_seconds),
            },
            sync: seen.sync(),
            entities: seen.entities(),
            accepted: number(status.counts.accepted),
            quarantine: seen.quarantine(source),
            files: seen.files(source),
            paused: status.paused.all.as_ref().map(|pause| seen.pause(pause)),
            facts: seen.facts(),
            incidents: overview
                .incidents
                .iter()
                .map(|incident| seen.incident(incident))
                .collect(),
            problems: status
                .capture
                .iter()
                .map(|problem| sentence_case(&problem.reason))
                // The sentence has said it.
                .filter(|problem| sentence.detail.as_ref() != Some(problem))
                .collect(),
            sentence,
        }
    }
}

impl View {
    /// Rows in quarantine alone.
    pub(super) fn quarantined(
        entries: &[QuarantineEntry],
        now: Timestamp,
        zone: &TimeZone,
    ) -> Vec<QuarantineRow> {
        let times = Times { now, zone };
        entries
            .iter()
            .map(|entry| quarantine_row(entry, &times))
            .collect()
    }
}

/// The present time, and the zone that times are shown in.
struct Times<'a> {
    now: Timestamp,
    zone: &'a TimeZone,
}

impl Times<'_> {
    fn moment(&self, at: Timestamp) -> Moment {
        Moment {
            iso: at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            text: time(at, self.now, self.zone),
            ago: match seconds_between(at, self.now).round() {
                seconds if seconds < 2.0 => "just now".to_owned(),
                seconds => format!("{} ago", span(seconds)),
            },
        }
    }
}

impl Seen<'_> {
    fn times(&self) -> Times<'_> {
        Times {
            now: self.now,
            zone: self.zone,
        }
    }

    fn moment(&self, at: Timestamp) -> Moment {
        self.times().moment(at)
    }

    fn pause(&self, pause: &Pause) -> String {
        let since = time(pause.since, self.now, self.zone);
        format!("Paused since {since} by {}.", pause.by)
    }

    fn sync(&self) -> SyncView {
        let status = self.status;
        SyncView {
            running: status.running_sync.as_ref().map(|sync| self.running(sync)),
            last: status.last_sync.as_ref().map(|sync| self.last_sync(sync)),
            next: status.next_sync.map(|at| {
                let until = format!("in {}", span(seconds_between(self.now, at).round()));
                (self.moment(at), until)
            }),
            refused: self.refused_sync.map(sentence_case),
        }
    }

    fn running(&self, sync: &RunningSync) -> RunningView {
        let pushed = count(sync.pushed, "row", "rows");
        RunningView {
            since: self.moment(sync.began_at),
            text: match &sync.entity {
                Some(entity) => format!(
                    "Compares {entity}: {} of {}; {pushed} pushed so far.",
                    number(sync.compared),
                    count(sync.rows, "row", "rows")
                ),
                None => format!("{pushed} pushed so far."),
            },
            done: sync.compared.min(sync.rows),
            rows: sync.rows.max(1),
        }
    }

    fn last_sync(&self, sync: &LastSync) -> LastView {
        let rows: usize = sync.summary.iter().map(|(_, rows)| rows).sum();
        let pushed = match rows {
            0 => "The cloud lacked nothing.".to_owned(),
            rows => format!("{} pushed.", count(rows as u64, "row was", "rows were")),
        };
        LastView {
            finished: self.moment(sync.finished_at),
            success: sync.success,
            text: match sync.errors.len() as u64 {
                0 => pushed,
                errors => {
                    let rows = count(rows as u64, "row was", "rows were");
                    format!("{}; {rows} pushed.", count(errors, "error", "errors"))
                }
            },
            pushed: sync
                .summary
                .iter()
                .filter(|(_, rows)| **rows > 0)
                .map(|(name, rows)| (name.to_owned(), number(*rows as u64)))
                .collect(),
            errors: sync.errors.iter().take(ERRORS_SHOWN).cloned().collect(),
            more_errors: sync.errors.len().saturating_sub(ERRORS_SHOWN),
        }
    }

    fn entities(&self) -> Vec<EntityRow> {
        let source = self.overview.source.as_ref();
        let row = |(name, accepted): (&str, &u64)| EntityRow {
            name: name.to_owned(),
            compared: self.overview.compared.get(name).copied().map(number),
            accepted: number(*accepted),
            waiting: source.map(|source| Amount::of(&source.waiting, name)),
            quarantined: source.map(|source| Amount::of(&source.quarantined, name)),
            paused: self
                .status
                .paused
                .entities
                .get(name)
                .map(|pause| self.pause(pause)),
        };
        self.status.entities.iter().map(row).collect()
    }

    fn quarantine(&self, source: Option<&SourceOverview>) -> Option<QuarantineView> {
        let source = source?;
        let total: u64 = source.quarantined.values().sum();
        let total = total.max(source.quarantine.len() as u64);
        Some(QuarantineView {
            total,
            more: total - source.quarantine.len() as u64,
            rows: source
                .quarantine
                .iter()
                .map(|entry| quarantine_row(entry, &self.times()))
                .collect(),
        })
    }

    fn files(&self, source: Option<&SourceOverview>) -> FilesView {
        let counts = &self.status.files;
        let all = source.map(|source| source.files.as_slice()).unwrap_or_default();
        let group = |title, class, count: u64, states: &[FileState], remedy: Option<&'static str>| {
            let files = all.iter().filter(|file| states.contains(&file.state));
            let files: Vec<FileRow> = files.map(file_row).collect();
            FileGroup {
                title,
                class,
                count,
                shown: number(count),
                remedy: remedy.filter(|_| count > 0),
                files,
            }
        };
        let failing = [FileState::Failing, FileState::Refused];
        let mut notes = Vec::new();
        match counts.bandwidth_limit {
            None => {}
            Some(0) => notes.push("No file goes now: files.bandwidth says off at this time.".to_owned()),
            Some(limit) => notes.push(format!("Files are limited to {} a second now.", size(limit))),
        }
        if let Some(budget) = &counts.budget {
            notes.push(format!("{}.", sentence_case(&words::budget(budget))));
        }
        if let Some(forecast) = words::forecast(counts, self.now, self.zone) {
            notes.push(format!("{}.", sentence_case(&forecast)));
        }
        if let Some(problem) = &counts.watch_problem {
            notes.push(format!(
                "{} The rescan finds such changes.",
                sentence_case(problem)
            ));
        }
        FilesView {
            groups: vec![
                group(
                    "Missing in the media folder",
                    "act",
                    counts.missing,
                    &[FileState::Missing],
                    Some(
                        "Put them there, or correct the rows that name them. A file is sent without help once it \
                         is there.",
                    ),
                ),
                group(
                    "Not taken, or not readable",
                    "act",
                    counts.failed,
                    &failing,
                    Some(
                        "`cloud-sync files why PATH` says more. Failing files are tried again by themselves.",
                    ),
                ),
                group(
                    "Waiting or being sent",
                    "moving",
                    counts.waiting,
                    &[FileState::Waiting],
                    None,
                ),
                group(
                    "Confirmed by the cloud",
                    "good",
                    counts.uploaded,
                    &[FileState::Uploaded],
                    None,
                ),
            ],
            notes,
            paused: self.status.paused.files.as_ref().map(|pause| self.pause(pause)),
        }
    }

    fn facts(&self) -> Vec<Fact> {
        let status = self.status;
        let mut facts = Vec::new();
        let mut add = |name, value: String, class| facts.push(Fact { name, value, class });
        add("State", status.state.word().to_owned(), "");
        if let Some(since) = status.running_since {
            add("Running since", time(since, self.now, self.zone), "");
        }
        add(
            "Cloud",
            status.cloud.url.clone().unwrap_or_else(|| "not set".to_owned()),
            "",
        );
        let bytes = status.outbox_bytes.map_or("not known".to_owned(), size);
        add("Outbox", bytes, "");
        let growth = status.outbox_growth.unwrap_or_default();
        match growth.bytes_per_second {
            Some(rate) if rate >= 1.0 => add("It grows by", format!("{} a second", size(rate as u64)), ""),
            Some(_) => add("It grows by", "nothing".to_owned(), ""),
            None => {}
        }
        match (growth.room_bytes, growth.full_in_seconds) {
            (Some(room), Some(seconds)) => {
                add("Room on its disk", size(room), "");
                let class = if seconds < DISK_SOON { "act" } else { "" };
                add("The disk lasts", format!("{} at this rate", span(seconds)), class);
            }
            (Some(room), None) => add("Room on its disk", size(room), ""),
            (None, _) => add(
                "Room on its disk",
                "cannot be seen from here: set source.outbox_limit".to_owned(),
                "",
            ),
        }
        match status.capture.len() as u64 {
            0 => add("Capture", "in place".to_owned(), "good"),
            problems => add(
                "Capture",
                count(problems, "entity needs a look", "entities need a look"),
                "act",
            ),
        }
        facts
    }

    fn incident(&self, incident: &Incident) -> IncidentRow {
        let end = incident.until.unwrap_or(self.now);
        IncidentRow {
            since: self.moment(incident.since),
            what: match incident.kind {
                IncidentKind::Away(Peer::Cloud) => "The cloud was not reachable",
                IncidentKind::Away(Peer::Source) => "The site's database was not reachable",
                IncidentKind::KeyRefused => "The cloud refused the key",
                IncidentKind::Stopped => "Replication stopped",
                IncidentKind::Paused => "Replication was paused",
            },
            lasted: span(seconds_between(incident.since, end).round()),
            is_over: incident.until.is_some(),
            reason: sentence_case(&incident.reason),
        }
    }
}

fn quarantine_row(entry: &QuarantineEntry, times: &Times<'_>) -> QuarantineRow {
    let at = entry.refused_at.parse().unwrap_or(times.now);
    QuarantineRow {
        position: entry.position,
        entity: entry.entity.clone(),
        key: readable_key(&entry.key),
        what: match (entry.op.as_str(), entry.code) {
            ("d", _) => "its delete",
            ("t", _) => "a truncate of the table",
            ("r", _) => "the row cannot be read",
            _ => "its present state",
        },
        reason: match entry.code {
            0..=2 => sentence_case(&entry.error),
            code => format!("The cloud answered {code}: {}", entry.error),
        },
        refused: times.moment(at),
        attempts: count(u64::from(entry.attempts.unsigned_abs()), "attempt", "attempts"),
        by_itself: u16::try_from(entry.code).is_ok_and(may_be_accepted_later),
    }
}

fn file_row(file: &RecentFile) -> FileRow {
    let mut parts = Vec::new();
    if let Some(bytes) = file.size {
        parts.push(size(bytes));
    }
    if file.state != FileState::Uploaded {
        parts.push(match (&file.reason, file.state) {
            (Some(reason), _) => reason.clone(),
            (None, FileState::Missing) => "not found".to_owned(),
            (None, _) => "it is its turn soon".to_owned(),
        });
    }
    if file.attempts > 0 && file.state == FileState::Failing {
        parts.push(count(u64::from(file.attempts), "attempt", "attempts"));
    }
    if let Some(seconds) = file.next_attempt_seconds.filter(|seconds| *seconds >= 1.0) {
        parts.push(format!("tried again in {}", span(seconds.round())));
    }
    FileRow {
        // A path may hold anything but a NUL.
        path: file.path.escape_debug().to_string(),
        text: parts.join(", "),
    }
}

/// A key as people write it: `leave_id 118`.
fn readable_key(key: &str) -> String {
    let Ok(serde_json::Value::Object(columns)) = serde_json::from_str(key) else {
        return key.to_owned();
    };
    let words = columns.iter().map(|(column, value)| match value {
        serde_json::Value::String(text) => format!("{column} {text}"),
        value => format!("{column} {value}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn milliseconds(value: f64) -> String {
    if value < 1_000.0 {
        format!("{value:.1} ms")
    } else {
        span(value / 1_000.0)
    }
}
