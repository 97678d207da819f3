//! `uninstall`: removes capture from the site's database.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cloud-sync uninstall             remove triggers and outbox, once all is delivered
  cloud-sync uninstall --force     remove them although changes wait";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UninstallArgs {
    /// Remove it although changes wait that the cloud has not accepted; they are lost
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(_context: &Context, _args: UninstallArgs) -> Result<ExitCode> {
    Err(without_engine("uninstall"))
}
