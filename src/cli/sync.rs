//! `sync`: compares once with the cloud and pushes what is missing. The daemon does it, if one runs.

use std::process::ExitCode;

use clap::Args;

use super::progress::ProgressDisplay;
use super::{Context, SiteFlags, output};
use crate::control::client::ControlClient;
use crate::control::{SyncReport, SyncRequest};
use crate::error::Result;
use crate::replicator::OneShot;

const EXAMPLES: &str = "\
Examples:
  cloud-sync sync
  cloud-sync sync --entity rooms --entity cameras
  cloud-sync sync --force --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SyncArgs {
    /// Push rows that the cloud holds too, if it lists only their keys and not their contents; ask it for
    /// each file, and send those that are gone
    #[arg(long)]
    force: bool,
    /// Only this entity; can be repeated
    #[arg(long, value_name = "NAME")]
    entity: Vec<String>,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(context: &Context, args: SyncArgs) -> Result<ExitCode> {
    let settings = &context.completed_settings().await?;
    settings.catalogue.select(&args.entity)?;
    let request = SyncRequest {
        force: args.force,
        entities: args.entity,
    };
    let report = match ControlClient::new(settings)?.sync_now(&request).await? {
        Some(report) => report,
        // No daemon runs: this process drains while it compares.
        None => {
            let once = OneShot::start(settings).await?;
            let report = once.sync(&request, &ProgressDisplay::new("compared")).await;
            once.finish().await?;
            report?
        }
    };
    output::print(context.json, &report, describe)?;
    Ok(if report.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Formats the report for people.
fn describe(report: &SyncReport) -> String {
    let summary = report.summary();
    let rows = summary
        .iter()
        .map(|(entity, count)| vec![entity.to_owned(), count.to_string()]);
    let mut text = output::table(&["entity", "pushed"], rows);
    for error in report.errors() {
        text.push_str("\n! ");
        text.push_str(error);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::catalogue::EntityIndex;

    #[test]
    fn people_see_counts_and_errors() {
        let mut report = SyncReport::new(&Catalogue::builtin());
        report.add(EntityIndex(0), "{\"room_id\":1}").unwrap();
        report.fail("cameras", "Connection timeout");
        let text = describe(&report);
        assert!(
            text.lines()
                .any(|line| line.split_whitespace().eq(["rooms", "1"])),
            "{text}"
        );
        assert!(
            text.ends_with("! Failed to sync cameras: Connection timeout"),
            "{text}"
        );
    }
}
