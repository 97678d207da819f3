//! `check`: every precondition, one line each.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, output};
use crate::error::Result;
use crate::replicator::cloud_check;
use crate::replicator::preconditions::{self, Finding};

const EXAMPLES: &str = "\
Examples:
  cloud-sync check                 before the first start, and when something is wrong
  cloud-sync check --cloud         what the cloud's server is like, and which settings it needs
  cloud-sync check --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    /// Look only at the cloud's server: its status, its capabilities, its list of each entity. Nothing there
    /// is changed
    #[arg(long)]
    pub(super) cloud: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(context: &Context, args: CheckArgs) -> Result<ExitCode> {
    let findings = if args.cloud {
        cloud_check::check(context.settings()).await
    } else {
        preconditions::check(context.settings()).await
    };
    output::print(context.json, &findings, |findings| {
        findings
            .iter()
            .map(describe_finding)
            .collect::<Vec<_>>()
            .join("\n")
    })?;
    // The first problem decides the exit code, because later ones may only follow from it.
    Ok(findings
        .iter()
        .find_map(|finding| finding.exit_code())
        .map_or(ExitCode::SUCCESS, ExitCode::from))
}

pub(super) fn describe_finding(finding: &Finding) -> String {
    match (finding.error(), finding.advised()) {
        (None, None) => format!("ok     {}: {}", finding.subject(), finding.detail()),
        (None, Some(advice)) => format!("advice {}: {}; {advice}", finding.subject(), finding.detail()),
        (Some(error), _) => format!("WRONG  {}: {error}", finding.subject()),
    }
}
