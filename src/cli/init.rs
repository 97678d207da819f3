//! `init`: installs capture in the site's database.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cloud-sync init                  install capture, or bring it up to date
  cloud-sync init --new-epoch      after the database was restored from a dump";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct InitArgs {
    /// Declare the outbox a new one, after a restore: the cloud takes its positions as later than all before
    #[arg(long)]
    pub(super) new_epoch: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(_context: &Context, _args: InitArgs) -> Result<ExitCode> {
    Err(without_engine("init"))
}
