//! `backfill`: pushes the rows that stood before capture.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cloud-sync backfill                              each entity within its window
  cloud-sync backfill --entity rooms --entity cameras
  cloud-sync backfill --entity leaves --days 365
  cloud-sync backfill --all";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BackfillArgs {
    /// Only this entity; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) entity: Vec<String>,
    /// Rows of the last N days, for entities with a window
    #[arg(long, value_name = "N", conflicts_with = "all")]
    pub(super) days: Option<u32>,
    /// All rows, whatever the windows say
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(_context: &Context, _args: BackfillArgs) -> Result<ExitCode> {
    Err(without_engine("backfill"))
}
