//! `status`: prints the replicator's state. It asks the running daemon, or the source if none runs.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use jiff::{Timestamp, tz::TimeZone};

use super::{Context, SiteFlags, output};
use crate::control::client::ControlClient;
use crate::control::status::LatencyStatus;
use crate::control::{Pause, StatusReport, words};
use crate::error::Result;
use crate::replicator::offline_status;

const EXAMPLES: &str = "\
Examples:
  cloud-sync status
  cloud-sync status --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(context: &Context, _args: StatusArgs) -> Result<ExitCode> {
    let status = match ControlClient::new(context.settings())?.status().await? {
        Some(status) => status,
        None => offline_status(&context.completed_settings().await?).await?,
    };
    output::print(context.json, &status, |status| {
        describe(status, &TimeZone::system())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Formats the status for people: a line for each subject, times in `zone`.
fn describe(status: &StatusReport, zone: &TimeZone) -> String {
    let mut lines = StatusLines(String::new());
    let since = status.running_since.map_or(String::new(), |since| {
        format!(", since {}", local_time(since, zone))
    });
    let reason = status
        .reason
        .as_ref()
        .map_or(String::new(), |reason| format!(": {reason}"));
    lines.add("state", format!("{}{since}{reason}", status.state.word()));
    for (index, text) in describe_pauses(status, zone).iter().enumerate() {
        lines.add(if index == 0 { "paused" } else { "" }, text);
    }
    lines.add("source", describe_source(status));
    lines.add("cloud", describe_cloud(status));
    lines.add(
        "lag",
        status.lag.map_or("unknown".to_owned(), |lag| match lag.changes {
            0 => "none".to_owned(),
            changes => format!("{changes} changes, the oldest {} old", span(lag.age_seconds)),
        }),
    );
    if let Some(latency) = &status.latency {
        lines.add(
            "latency",
            format!(
                "p50 {:.1} ms, p99 {:.1} ms, from capture to acceptance",
                latency.p50_ms, latency.p99_ms
            ),
        );
        if let Some(steps) = describe_steps(latency) {
            lines.add("", steps);
        }
    }
    if let Some(checkpoint) = &status.checkpoint {
        lines.add("checkpoint", format!("position {}", checkpoint.position));
    }
    lines.add("last sync", describe_last_sync(status, zone));
    lines.add(
        "next sync",
        status
            .next_sync
            .map_or("none is scheduled".to_owned(), |next| local_time(next, zone)),
    );
    let counts = &status.counts;
    lines.add(
        "counts",
        format!(
            "{} accepted, {} refused, {} superseded, in {} batches of {}",
            counts.accepted,
            counts.refused,
            counts.collapsed,
            counts.batches,
            output::size(counts.bytes)
        ),
    );
    for (entity, accepted) in status.entities.iter().filter(|&(_, &accepted)| accepted > 0) {
        lines.add("", format!("{entity} {accepted}"));
    }
    lines.add(
        "quarantine",
        match status.quarantine {
            None => "unknown".to_owned(),
            Some(0) => "empty".to_owned(),
            Some(count) => format!("{count} refused changes: see cloud-sync quarantine list"),
        },
    );
    let files = &status.files;
    lines.add(
        "files",
        format!(
            "{} waiting, {} uploaded ({}), {} missing, {} failed",
            files.waiting,
            files.uploaded,
            output::size(files.bytes),
            files.missing,
            files.failed
        ),
    );
    if files.missing + files.failed > 0 {
        let example = files
            .example
            .as_deref()
            .map(|path| format!("such as {}; ", path.escape_debug()));
        lines.add(
            "",
            format!(
                "{}`cloud-sync files list` has each of them with the reason",
                example.unwrap_or_default()
            ),
        );
    }
    match files.bandwidth_limit {
        _ if status.paused.of_files().is_some() => {}
        None => {}
        Some(0) => lines.add("", "no file goes now: files.bandwidth says off at this time"),
        Some(limit) => lines.add("", format!("limited to {}/s now", output::size(limit))),
    }
    if let Some(budget) = &files.budget {
        lines.add("", words::budget(budget));
    }
    if let Some(forecast) = words::forecast(files, Timestamp::now(), zone) {
        lines.add("", forecast);
    }
    if let Some(problem) = &files.watch_problem {
        lines.add("", format!("{problem}; the rescan finds what it does not tell"));
    }
    lines.add("outbox", describe_outbox(status));
    for (index, problem) in status.capture.iter().enumerate() {
        lines.add(if index == 0 { "capture" } else { "" }, &problem.reason);
    }
    lines.0
}

/// What is paused, a line each.
fn describe_pauses(status: &StatusReport, zone: &TimeZone) -> Vec<String> {
    let paused = &status.paused;
    let describe = |what: &str, pause: &Pause, flag: &str| {
        let since = local_time(pause.since, zone);
        format!(
            "{what}, since {since} by {}: `cloud-sync resume{flag}` ends it",
            pause.by
        )
    };
    let all = paused.all.iter();
    let all = all.map(|pause| describe("everything", pause, ""));
    let files = paused.files.iter();
    let files = files.map(|pause| describe("files", pause, " --files"));
    let entities = paused.entities.iter();
    let entities = entities.map(|(name, pause)| describe(name, pause, &format!(" --entity {name}")));
    all.chain(files).chain(entities).collect()
}

/// Formats the known steps, each with p50 and p99.
fn describe_steps(latency: &LatencyStatus) -> Option<String> {
    let known = latency
        .steps
        .named()
        .into_iter()
        .filter_map(|(name, took)| Some((name, (*took)?)))
        .map(|(name, took)| format!("{name} {:.1}/{:.1}", took.p50_ms, took.p99_ms));
    let known = known.collect::<Vec<_>>().join(", ");
    (!known.is_empty()).then(|| format!("{known} ms a batch, p50/p99"))
}

struct StatusLines(String);

impl StatusLines {
    fn add(&mut self, subject: &str, text: impl AsRef<str>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{subject:<11} {}", text.as_ref());
    }
}

fn describe_source(status: &StatusReport) -> String {
    let source = &status.source;
    let mut text = describe_reachability(source.reachable, source.last_error.as_deref());
    if let Some(id) = &source.id {
        text = format!("{id}, {text}");
    }
    if let Some(epoch) = source.epoch.filter(|&epoch| epoch > 1) {
        text.push_str(&format!(", epoch {epoch}"));
    }
    text
}

fn describe_cloud(status: &StatusReport) -> String {
    let cloud = &status.cloud;
    let reachability = describe_reachability(cloud.reachable, cloud.last_error.as_deref());
    let url = cloud.url.as_deref().unwrap_or("not set");
    if cloud.capabilities.is_empty() {
        format!("{url}, {reachability}")
    } else {
        format!("{url}, {reachability}, with {}", cloud.capabilities.join(", "))
    }
}

fn describe_reachability(reachable: Option<bool>, error: Option<&str>) -> String {
    match (reachable, error) {
        (None, _) => "not asked yet".to_owned(),
        (Some(true), None) => "reachable".to_owned(),
        (Some(true), Some(error)) => format!("reachable, but {error}"),
        (Some(false), None) => "not reachable".to_owned(),
        (Some(false), Some(error)) => format!("not reachable ({error})"),
    }
}

/// Formats the outbox's size, how it grows, and when its disk is full.
fn describe_outbox(status: &StatusReport) -> String {
    let Some(bytes) = status.outbox_bytes else {
        return "unknown".to_owned();
    };
    let growth = status.outbox_growth.unwrap_or_default();
    let mut text = output::size(bytes);
    match growth.bytes_per_second {
        Some(rate) if rate >= 1.0 => {
            text.push_str(&format!(", grows by {} a second", output::size(rate as u64)))
        }
        Some(_) => text.push_str(", does not grow"),
        None => {}
    }
    match (growth.room_bytes, growth.full_in_seconds) {
        (Some(room), Some(seconds)) => text.push_str(&format!(
            ", room for {}: full in {}",
            output::size(room),
            span(seconds)
        )),
        (Some(room), None) => text.push_str(&format!(", room for {}", output::size(room))),
        (None, _) => {
            text.push_str(", room unknown: its disk cannot be seen from here (set source.outbox_limit)")
        }
    }
    text
}

fn describe_last_sync(status: &StatusReport, zone: &TimeZone) -> String {
    let Some(sync) = &status.last_sync else {
        return "none yet".to_owned();
    };
    let rows: usize = sync.summary.iter().map(|(_, count)| count).sum();
    let mut text = format!("{}, {rows} rows pushed", local_time(sync.finished_at, zone));
    for error in &sync.errors {
        text.push_str("; ");
        text.push_str(error);
    }
    text
}

fn local_time(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

fn span(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{LagStatus, ReplicatorState};
    use crate::latency::{PerStep, Percentiles};

    #[test]
    fn people_see_each_subject_on_a_line() {
        let mut status = StatusReport::unknown(ReplicatorState::BackingOff);
        status.running_since = Some("2026-11-22T00:00:00Z".parse().unwrap());
        status.reason = Some("the cloud is away".into());
        status.cloud.url = Some("https://cloud.example/api".into());
        status.cloud.reachable = Some(false);
        status.cloud.last_error = Some("connection refused".into());
        status.lag = Some(LagStatus {
            changes: 12,
            age_seconds: 7200.0,
        });
        status.paused.entities = [(
            "rooms".to_owned(),
            Pause {
                since: "2026-11-22T01:00:00Z".parse().unwrap(),
                by: "anna".into(),
            },
        )]
        .into();
        status.quarantine = Some(1);
        status.outbox_bytes = Some(3 << 20);
        status.outbox_growth = Some(crate::control::status::GrowthStatus {
            bytes_per_second: Some(1024.0),
            room_bytes: Some(7200 * 1024),
            full_in_seconds: Some(7200.0),
        });
        status.capture = vec![crate::control::status::CaptureProblem {
            entity: "rooms".into(),
            broken: true,
            reason: "cannot capture rooms: a trigger is gone; run `cloud-sync init`".into(),
        }];
        status.entities = [("rooms".to_owned(), 7), ("cameras".to_owned(), 0)]
            .into_iter()
            .collect();
        let (p50_ms, p99_ms) = (1.25, 8.0);
        let took = Some(Percentiles { p50_ms, p99_ms });
        status.latency = Some(LatencyStatus {
            p50_ms,
            p99_ms,
            steps: PerStep {
                wake: took,
                apply: None,
                commit: took,
                ..PerStep::default()
            },
        });
        let text = describe(&status, &TimeZone::UTC);
        for line in [
            "state       backing off, since 2026-11-22 00:00:00: the cloud is away",
            "paused      rooms, since 2026-11-22 01:00:00 by anna: `cloud-sync resume --entity rooms` ends it",
            "cloud       https://cloud.example/api, not reachable (connection refused)",
            "lag         12 changes, the oldest 2.0 h old",
            "latency     p50 1.2 ms, p99 8.0 ms, from capture to acceptance",
            "            wake 1.2/8.0, commit 1.2/8.0 ms a batch, p50/p99",
            "            rooms 7",
            "next sync   none is scheduled",
            "quarantine  1 refused changes: see cloud-sync quarantine list",
            "outbox      3.00 MiB, grows by 1.00 KiB a second, room for 7.03 MiB: full in 2.0 h",
            "capture     cannot capture rooms: a trigger is gone; run `cloud-sync init`",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line:?} in\n{text}");
        }
        assert!(!text.contains("cameras"));
    }
}
