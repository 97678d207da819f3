//! `backfill`: pushes the rows that were there before capture.

use std::process::ExitCode;

use clap::Args;

use super::progress::ProgressDisplay;
use super::{Context, SiteFlags, output};
use crate::error::Result;
use crate::reconcile::backfill::{BackfillReport, RowSpan};
use crate::replicator;
use crate::shutdown::Shutdown;

const EXAMPLES: &str = "\
Examples:
  cloud-sync backfill                              each entity within its retention
  cloud-sync backfill --entity rooms --entity cameras
  cloud-sync backfill --entity leaves --days 365
  cloud-sync backfill --all";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BackfillArgs {
    /// Only this entity; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) entity: Vec<String>,
    /// Rows of the last N days, for entities with a retention
    #[arg(long, value_name = "N", conflicts_with = "all")]
    pub(super) days: Option<u32>,
    /// All rows, whatever their age
    #[arg(long)]
    pub(super) all: bool,
    /// Begin again, even if an earlier backfill has ended or was interrupted
    #[arg(long)]
    pub(super) restart: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(context: &Context, args: BackfillArgs) -> Result<ExitCode> {
    let span = match args.days {
        _ if args.all => RowSpan::All,
        Some(days) => RowSpan::Days(days),
        None => RowSpan::Retention,
    };
    let shutdown = Shutdown::listen()?;
    let report = replicator::backfill(
        &context.completed_settings().await?,
        &args.entity,
        span,
        args.restart,
        &ProgressDisplay::new("backfilled"),
        &shutdown.token(),
    )
    .await?;
    output::print(context.json, &report, describe)?;
    Ok(if report.success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn describe(report: &BackfillReport) -> String {
    let rows = report
        .pushed
        .iter()
        .zip(report.held.iter())
        .map(|((entity, pushed), (_, held))| vec![entity.to_owned(), pushed.to_string(), held.to_string()]);
    let mut text = output::table(&["entity", "pushed", "already there"], rows);
    for error in &report.errors {
        text.push_str("\n! ");
        text.push_str(error);
    }
    text
}
