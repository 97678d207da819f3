//! `check`: every precondition, one line each.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, output};
use crate::error::Result;
use crate::replicator::preconditions::{self, Finding};

const EXAMPLES: &str = "\
Examples:
  cloud-sync check                 before the first start, and when something is wrong
  cloud-sync check --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(context: &Context, _args: CheckArgs) -> Result<ExitCode> {
    let findings = preconditions::check(context.settings()).await;
    output::show(context.json, &findings, |findings| {
        findings.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    // The first thing that is wrong decides, since what comes after it may only follow from it.
    Ok(findings
        .iter()
        .find_map(|finding| finding.exit_code())
        .map_or(ExitCode::SUCCESS, ExitCode::from))
}

fn line(finding: &Finding) -> String {
    match finding.error() {
        None => format!("ok     {}: {}", finding.subject(), finding.detail()),
        Some(error) => format!("WRONG  {}: {error}", finding.subject()),
    }
}
