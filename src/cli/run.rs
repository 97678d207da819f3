//! `run`: replicates continuously and serves the operator API.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, given, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cloud-sync run
  cloud-sync run --config /etc/cloud-sync.toml
  cloud-sync run --listen 127.0.0.1:9000 --set schedule.sync=off";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// Where the operator API listens, for control.listen
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    #[command(flatten)]
    site: SiteFlags,
}

impl RunArgs {
    pub(super) fn overrides(&self) -> Vec<(String, String)> {
        let mut overrides = self.site.overrides();
        overrides.extend(given([("control.listen", &self.listen)]));
        overrides
    }
}

pub(super) async fn execute(_context: &Context, _args: RunArgs) -> Result<ExitCode> {
    Err(without_engine("run"))
}
