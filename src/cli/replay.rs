//! `replay`: drains again from an earlier position or time.

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use serde_json::json;

use super::{Context, SiteFlags, output};
use crate::change::Position;
use crate::error::Result;
use crate::replicator::{self, ReplayFrom};

const EXAMPLES: &str = "\
Examples:
  cloud-sync replay --from 120000
  cloud-sync replay --from 2026-11-22T08:00:00+08:00
  cloud-sync replay --from \"2026-11-22 08:00\"      in local time";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReplayArgs {
    /// A position, or a time: with an offset, or in local time
    #[arg(long, value_name = "POSITION|TIME")]
    pub(super) from: ReplayPoint,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

/// Where a replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplayPoint {
    /// At this position.
    Position(Position),
    /// At the first change that was captured at this time or later.
    Time(Timestamp),
}

impl FromStr for ReplayPoint {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let syntax_error = || {
            "write a position, as 120000, or a time, as \
            2026-11-22T08:00:00+08:00"
                .to_owned()
        };
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text
                .parse()
                .map(|number| Self::Position(Position(number)))
                .map_err(|_| syntax_error());
        }
        if let Ok(time) = text.parse() {
            return Ok(Self::Time(time));
        }
        text.parse::<DateTime>()
            .and_then(|local| local.to_zoned(TimeZone::system()))
            .map(|time| Self::Time(time.timestamp()))
            .map_err(|_| syntax_error())
    }
}

pub(super) async fn execute(context: &Context, args: ReplayArgs) -> Result<ExitCode> {
    let from = match args.from {
        ReplayPoint::Position(position) => ReplayFrom::Position(position),
        ReplayPoint::Time(time) => ReplayFrom::Time(time),
    };
    let replayed = replicator::replay(&context.completed_settings().await?, from).await?;
    let answer = json!({"success": true, "from": replayed.from, "changes": replayed.changes});
    output::print(context.json, &answer, |_| {
        format!(
            "the checkpoint is before position {}: the next `cloud-sync run` drains {} changes again",
            replayed.from, replayed.changes
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_times_are_distinguished() {
        assert_eq!("120000".parse(), Ok(ReplayPoint::Position(Position(120_000))));
        let noon: Timestamp = "2026-11-22T04:00:00Z".parse().unwrap();
        assert_eq!("2026-11-22T12:00:00+08:00".parse(), Ok(ReplayPoint::Time(noon)));
        for text in ["2026-11-22 08:00", "2026-11-22", "2026-11-22T08:00:30"] {
            assert!(matches!(text.parse(), Ok(ReplayPoint::Time(_))), "{text}");
        }
        for text in ["", "yesterday", "-5", "99999999999999999999"] {
            assert!(text.parse::<ReplayPoint>().is_err(), "{text}");
        }
    }
}
