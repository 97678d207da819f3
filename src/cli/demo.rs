//! `demo`: a whole site with its cloud, live.

use std::process::ExitCode;

use clap::Args;

use super::{Context, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cloud-sync demo                  watch a sample school replicate; Ctrl-C ends it";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DemoArgs {}

pub(super) async fn execute(_context: &Context, _args: DemoArgs) -> Result<ExitCode> {
    Err(without_engine("demo"))
}
