//! `alerts`: tries whether alerts arrive.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Context, SiteFlags, output};
use crate::alerts::ChannelReport;
use crate::error::Result;
use crate::replicator::test_alerts;

const EXAMPLES: &str = "\
Examples:
  cloud-sync alerts test
  cloud-sync alerts test --set alerts.webhook=https://chat.example/hooks/it

Exit code: 1 if a channel fails.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AlertsArgs {
    #[command(subcommand)]
    action: AlertsAction,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Debug, Subcommand)]
enum AlertsAction {
    /// Send one message by each channel that the settings name
    Test,
}

pub(super) async fn execute(context: &Context, args: AlertsArgs) -> Result<ExitCode> {
    let AlertsAction::Test = args.action;
    let reports = test_alerts(context.settings()).await?;
    output::print(context.json, &reports, |reports| {
        reports.iter().map(describe).collect::<Vec<_>>().join("\n")
    })?;
    let fails = reports.iter().any(|report| report.error.is_some());
    Ok(ExitCode::from(u8::from(fails)))
}

fn describe(report: &ChannelReport) -> String {
    match &report.error {
        None => format!("{}: a test message was taken", report.channel),
        Some(error) => format!("{}: {error}", report.channel),
    }
}
