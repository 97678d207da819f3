//! The sentence at the top of the page: what is so, and the one thing that somebody has to do, if there is
//! one.
//!
//! What always holds: the sentence is true for all that the status tells. "Everything is in the cloud" is
//! said only if nothing waits, nothing was refused, no file is missing, capture is in place, and a comparison
//! with the cloud has succeeded. What is worse comes first.

use jiff::Timestamp;

use crate::control::problems::{self, DISK_SOON, disk_lasts, sentence_case};
use crate::control::status::{FileCounts, LagStatus, ReplicatorState};
use crate::control::words::{count, number, seconds_between, span, verb};
use crate::control::{Pause, StatusReport};

/// Changes that wait for longer than this while nothing is accepted are stuck, in seconds.
const STUCK: f64 = 60.0;

/// Changes that are younger than this reach the cloud as they are made, in seconds.
const SOON: f64 = 10.0;

/// A cloud that is away for longer than this needs somebody, in seconds.
const LONG_AWAY: f64 = 3_600.0;

/// How good or bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Nothing waits.
    Good,
    /// Something is on its way.
    Moving,
    /// Something waits, and goes on by itself.
    Waiting,
    /// Somebody has to do something.
    Act,
}

impl Level {
    /// Its name in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Moving => "moving",
            Self::Waiting => "waiting",
            Self::Act => "act",
        }
    }

    /// For those who do not see the colour.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Good => "All is well",
            Self::Moving => "On its way",
            Self::Waiting => "Waiting",
            Self::Act => "Needs you",
        }
    }
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sentence {
    pub(super) level: Level,
    pub(super) headline: String,
    /// Why, or what follows from it.
    pub(super) detail: Option<String>,
    /// What somebody has to do.
    pub(super) todo: Option<Todo>,
}

/// What somebody has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Todo {
    pub(super) text: String,
    /// The command that helps, or the part of the page (`#files`).
    pub(super) how: Option<&'static str>,
}

impl Sentence {
    /// Whether it waits for the cloud alone.
    pub(super) fn goes_on_by_itself(&self) -> bool {
        self.level == Level::Waiting
    }

    /// What is so, and what somebody has to do.
    pub(super) fn with_todo(&self) -> String {
        match &self.todo {
            Some(todo) => format!("{} {}", self.headline, todo.text),
            None => self.headline.clone(),
        }
    }

    /// The sentences of the headline.
    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.headline.split_inclusive(". ").map(str::trim_end)
    }

    fn new(level: Level, headline: impl Into<String>) -> Self {
        Self {
            level,
            headline: headline.into(),
            detail: None,
            todo: None,
        }
    }

    fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    fn because_of(self, reason: Option<&String>) -> Self {
        match reason {
            Some(reason) => self.because(sentence_case(reason)),
            None => self,
        }
    }

    fn act(mut self, text: impl Into<String>, how: impl Into<Option<&'static str>>) -> Self {
        self.level = Level::Act;
        self.todo = Some(Todo {
            text: text.into(),
            how: how.into(),
        });
        self
    }
}

/// What is so, by the status at this time.
pub(super) fn sentence(status: &StatusReport, now: Timestamp) -> Sentence {
    if let Some(pause) = &status.paused.all
        && status.source.reachable != Some(false)
        && !matches!(status.state, ReplicatorState::Stopped | ReplicatorState::Standby)
    {
        return all_paused(status, pause, now);
    }
    match status.state {
        ReplicatorState::Starting => Sentence::new(Level::Moving, "cloud-sync is starting.")
            .because("It connects to the site's database and to the cloud."),
        ReplicatorState::Standby => Sentence::new(
            Level::Good,
            "Another cloud-sync replicates this site; this one stands by.",
        )
        .because_of(status.reason.as_ref()),
        ReplicatorState::Stopped => {
            Sentence::new(Level::Act, format!("cloud-sync has stopped. {}", waiting(status)))
                .because_of(status.reason.as_ref())
                .act(
                    "Do what the reason says, then start cloud-sync again.",
                    "cloud-sync check",
                )
        }
        ReplicatorState::KeyRefused => Sentence::new(
            Level::Act,
            format!("The cloud refuses our key. {}", waiting(status)),
        )
        .because_of(status.reason.as_ref())
        .act(
            "Ask the cloud's operator for a valid key, and set it as cloud.key. A running cloud-sync takes \
                     it at SIGHUP.",
            "systemctl reload cloud-sync",
        ),
        ReplicatorState::BackingOff | ReplicatorState::Replicating | ReplicatorState::Paused
            if status.source.reachable == Some(false) =>
        {
            source_away(status, now)
        }
        ReplicatorState::BackingOff if status.cloud.reachable == Some(false) => cloud_away(status, now),
        ReplicatorState::BackingOff => source_away(status, now),
        // It was resumed a moment ago.
        ReplicatorState::Replicating | ReplicatorState::Paused => replicating(status, now),
    }
}

/// Everything is paused.
fn all_paused(status: &StatusReport, pause: &Pause, now: Timestamp) -> Sentence {
    let headline = format!(
        "Replication has been paused for {}. {}",
        so_long(seconds_between(pause.since, now)),
        waiting(status)
    );
    let todo = match disk_lasts(status) {
        Some(seconds) if seconds < DISK_SOON => format!(
            "Resume it soon, or make room: the outbox's disk is full in {} at this rate.",
            span(seconds)
        ),
        _ => "Resume it when what it was paused for is done.".to_owned(),
    };
    Sentence::new(Level::Act, headline)
        .because(format!(
            "Paused by {}. Changes are captured all the time.",
            pause.by
        ))
        .act(todo, "#machine")
}

/// Entities or files are paused, and all else goes on; `rows` says what is on its way.
fn parts_paused(status: &StatusReport, rows: Option<&str>, now: Timestamp) -> Option<Sentence> {
    let paused = &status.paused;
    let first = paused.entities.values().next().or(paused.files.as_ref())?;
    let since = so_long(seconds_between(first.since, now));
    let headline = match paused.entities.keys().next() {
        None => format!("Files have been paused for {since}."),
        Some(name) => {
            let mut said = match paused.entities.len() as u64 {
                1 => format!("{name} has been paused for {since}."),
                all => format!(
                    "{name} and {} are paused.",
                    count(all - 1, "other entity", "other entities")
                ),
            };
            if paused.files.is_some() {
                said.push_str(" Files are paused too.");
            }
            said
        }
    };
    let headline = match rows {
        Some(rows) => format!("{rows} {headline}"),
        None => headline,
    };
    let part = if paused.entities.is_empty() {
        "#files"
    } else {
        "#rows"
    };
    let detail = format!(
        "Paused by {}. What changes meanwhile is kept, and all else goes on.",
        first.by
    );
    let said = Sentence::new(Level::Act, headline).because(detail);
    Some(said.act("Resume it when what it was paused for is done.", part))
}

fn source_away(status: &StatusReport, now: Timestamp) -> Sentence {
    let reason = status.source.last_error.as_ref().or(status.reason.as_ref());
    let since = match status.state {
        ReplicatorState::BackingOff => since(status, now),
        _ => None,
    };
    let headline = match since {
        Some(since) => format!("The site's database has not been reachable for {since}."),
        None => "The site's database is not reachable.".to_owned(),
    };
    Sentence::new(Level::Act, headline).because_of(reason).act(
        "Look whether PostgreSQL runs. What is committed there is captured, and is sent when it answers.",
        "cloud-sync check",
    )
}

fn cloud_away(status: &StatusReport, now: Timestamp) -> Sentence {
    let headline = match since(status, now) {
        Some(since) => format!(
            "The cloud has not been reachable for {since}. {}",
            waiting(status)
        ),
        None => format!("The cloud is not reachable. {}", waiting(status)),
    };
    let said = Sentence::new(Level::Waiting, headline).because_of(status.reason.as_ref());
    let is_long = status
        .state_since
        .is_some_and(|since| seconds_between(since, now) > LONG_AWAY);
    match disk_lasts(status) {
        Some(seconds) if seconds < DISK_SOON => said.act(
            format!(
                "Mend the line to the cloud, or make room: the outbox's disk is full in {} at this rate.",
                span(seconds)
            ),
            "cloud-sync check --cloud",
        ),
        _ if is_long => said.act(
            "Look whether the line and the cloud's server work. What waits is sent when the cloud answers.",
            "cloud-sync check --cloud",
        ),
        _ => said,
    }
}

fn replicating(status: &StatusReport, now: Timestamp) -> Sentence {
    let lag = status.lag.unwrap_or_default();
    if let Some((headline, problem)) = problems::broken_entities(status) {
        return Sentence::new(Level::Act, headline)
            .because_of(Some(&problem.reason))
            .act(
                "Do what the reason says; all other entities go on.",
                "cloud-sync check",
            );
    }
    if let Some(stuck) = stuck(status, lag, now) {
        return stuck;
    }
    let on_their_way = || {
        format!(
            "{} {} on {} way; the oldest is {} old.",
            count(lag.changes, "change", "changes"),
            verb(lag.changes, "is", "are"),
            verb(lag.changes, "its", "their"),
            span(lag.age_seconds)
        )
    };
    let rows = match lag.changes {
        0 => None,
        _ if lag.age_seconds < SOON => Some("Changes reach the cloud as they are made.".to_owned()),
        changes => Some(format!(
            "{} {} on {} way.",
            count(changes, "change", "changes"),
            verb(changes, "is", "are"),
            verb(changes, "its", "their")
        )),
    };
    if let Some(said) = needs_a_look(status, rows.as_deref()) {
        return said;
    }
    if let Some(said) = parts_paused(status, rows.as_deref(), now) {
        return said;
    }
    let files = &status.files;
    let waiting_files = files_on_their_way(files);
    match (rows, waiting_files) {
        (Some(rows), Some(files)) => {
            Sentence::new(Level::Moving, format!("{rows} {files}")).because(on_their_way())
        }
        (Some(rows), None) => Sentence::new(Level::Moving, rows).because(on_their_way()),
        (None, Some(files)) => Sentence::new(Level::Moving, format!("Rows are up to date. {files}")),
        (None, None) => nothing_waits(status),
    }
}

/// The files that wait, and those that may still come; `None` if there are none.
fn files_on_their_way(files: &FileCounts) -> Option<String> {
    let mut said = Vec::new();
    if files.waiting > 0 {
        let used_up = files.budget.and_then(|budget| budget.used_up());
        let how = match files.bandwidth_limit {
            Some(0) => "by the plan of files.bandwidth",
            _ if used_up.is_some() => "until the next day or month, by files.budget",
            _ => verb(files.waiting, "or is being sent", "or are being sent"),
        };
        let waiting = count(files.waiting, "file", "files");
        said.push(format!(
            "{waiting} {} {how}.",
            verb(files.waiting, "waits", "wait")
        ));
    }
    if files.missing > 0 {
        said.push(format!(
            "{} {} not in the media folder yet.",
            count(files.missing, "file", "files"),
            verb(files.missing, "is", "are")
        ));
    }
    (!said.is_empty()).then(|| said.join(" "))
}

/// Changes wait, and nothing is accepted.
fn stuck(status: &StatusReport, lag: LagStatus, now: Timestamp) -> Option<Sentence> {
    let quiet = match (status.last_accepted_at, status.running_since) {
        (Some(at), _) | (None, Some(at)) => seconds_between(at, now),
        (None, None) => return None,
    };
    // After an outage or a pause, what waits is as old as that; it goes now.
    let replicating = status
        .state_since
        .map_or(f64::INFINITY, |since| seconds_between(since, now));
    let quiet = quiet.min(lag.age_seconds).min(replicating);
    (lag.changes > 0 && quiet > STUCK).then(|| {
        let headline = format!(
            "{} {}, and none was accepted for {}.",
            count(lag.changes, "change", "changes"),
            verb(lag.changes, "waits", "wait"),
            span(quiet)
        );
        Sentence::new(Level::Act, headline)
            .because_of(status.reason.as_ref())
            .act("See what holds them up.", "cloud-sync check")
    })
}

/// The first thing that somebody has to look at; `rows` says what else is on its way.
fn needs_a_look(status: &StatusReport, rows: Option<&str>) -> Option<Sentence> {
    let before = |text: String| match rows {
        Some(rows) => format!("{rows} {text}"),
        None => text,
    };
    if let Some(headline) = problems::quarantine(status) {
        return Some(
            Sentence::new(Level::Act, before(headline))
                .because("All other rows go on.")
                .act("Read why, then send again or discard.", "#quarantine"),
        );
    }
    if let Some(headline) = problems::disk(status, DISK_SOON) {
        return Some(Sentence::new(Level::Act, before(headline)).act(
            "Make room, or find what writes so much and what holds it up.",
            "cloud-sync status",
        ));
    }
    let of_files: Vec<String> = [problems::missing_files(status), problems::failed_files(status)]
        .into_iter()
        .flatten()
        .collect();
    if !of_files.is_empty() {
        let headline = before(format!("{}.", of_files.join(", ")));
        return Some(
            Sentence::new(Level::Act, headline)
                .because("All other files go on, and so do rows.")
                .act("See which files, and why.", "#files"),
        );
    }
    if let Some(sync) = status.last_sync.as_ref().filter(|sync| !sync.success) {
        let errors = sync.errors.len() as u64;
        let headline = format!("The last sync had {}.", count(errors, "error", "errors"));
        return Some(
            Sentence::new(Level::Act, before(headline))
                .because_of(sync.errors.first())
                .act("Read its report; it is tried again with the next sync.", "#sync"),
        );
    }
    None
}

fn nothing_waits(status: &StatusReport) -> Sentence {
    if status.lag.is_none() {
        return Sentence::new(Level::Moving, "What waits is not known yet.")
            .because_of(status.reason.as_ref());
    }
    if let Some(gap) = status.capture.first() {
        return Sentence::new(
            Level::Moving,
            format!(
                "Every captured change is in the cloud; {} is still to be compared.",
                gap.entity
            ),
        )
        .because_of(Some(&gap.reason));
    }
    match &status.last_sync {
        Some(_) => Sentence::new(Level::Good, "Everything is in the cloud."),
        None => Sentence::new(Level::Good, "Every captured change is in the cloud.").because(
            "Nothing was compared with the cloud since cloud-sync started. A sync also finds what was there \
             before.",
        ),
    }
}

/// How many changes wait, where the cloud takes none.
fn waiting(status: &StatusReport) -> String {
    let files = match status.files.waiting {
        0 => String::new(),
        files => format!(
            " So {} {}.",
            verb(files, "does", "do"),
            count(files, "file", "files")
        ),
    };
    match status.lag {
        None => "What is committed stays in the site's database.".to_owned(),
        Some(LagStatus { changes: 0, .. }) if files.is_empty() => "No change waits.".to_owned(),
        Some(LagStatus { changes: 0, .. }) => format!(
            "No change waits, but {} {}.",
            count(status.files.waiting, "file", "files"),
            verb(status.files.waiting, "does", "do")
        ),
        Some(LagStatus { changes: 1, .. }) => format!("1 change is safe here and waits.{files}"),
        Some(LagStatus { changes, .. }) => {
            format!("{} changes are safe here and wait.{files}", number(changes))
        }
    }
}

fn since(status: &StatusReport, now: Timestamp) -> Option<String> {
    Some(so_long(seconds_between(status.state_since?, now)))
}

/// A time that goes on.
fn so_long(seconds: f64) -> String {
    if seconds < 60.0 {
        "less than a minute".to_owned()
    } else if seconds < 7_200.0 {
        span((seconds / 60.0).floor() * 60.0).replace("60 seconds", "1 minute")
    } else {
        span(seconds)
    }
}

#[cfg(test)]
mod tests;
