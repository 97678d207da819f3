//! `check`: every precondition, one line each.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, without_engine};
use crate::error::Result;

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

pub(super) async fn execute(_context: &Context, _args: CheckArgs) -> Result<ExitCode> {
    Err(without_engine("check"))
}
