//! `receiver`: the reference cloud server.

use std::process::ExitCode;

use clap::Args;

use super::{Context, given, without_engine};
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  CLOUD_SYNC_RECEIVER_KEYS=college=secret cloud-sync receiver --database-url postgresql://localhost/cloud
  cloud-sync receiver --listen 0.0.0.0:8080 --config cloud.toml";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReceiverArgs {
    /// Where it listens, for receiver.listen
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The cloud's own database, for receiver.database_url
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// The folder of uploaded files, for receiver.files
    #[arg(long, value_name = "FOLDER")]
    files: Option<String>,
}

impl ReceiverArgs {
    pub(super) fn overrides(&self) -> Vec<(String, String)> {
        given([
            ("receiver.listen", &self.listen),
            ("receiver.database_url", &self.database_url),
            ("receiver.files", &self.files),
        ])
    }
}

pub(super) async fn execute(_context: &Context, _args: ReceiverArgs) -> Result<ExitCode> {
    Err(without_engine("receiver"))
}
