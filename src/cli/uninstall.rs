//! `uninstall`: removes capture from the site's database.

use std::process::ExitCode;

use clap::Args;

use serde_json::json;

use super::{Context, SiteFlags, output};
use crate::error::{Error, Kind, Result};
use crate::replicator::{connect, offline_status};
use crate::source::install;

const EXAMPLES: &str = "\
Examples:
  cloud-sync uninstall             remove triggers and outbox, once all is delivered
  cloud-sync uninstall --force     remove them although changes wait";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UninstallArgs {
    /// Remove it although the cloud has not accepted all changes; those that wait are lost
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn execute(context: &Context, args: UninstallArgs) -> Result<ExitCode> {
    let settings = context.settings();
    let session = connect(settings, "uninstall").await?;
    let is_installed = install::installed(session.client()).await?;
    if is_installed {
        install::must_not_be_led(session.client()).await?;
    }
    if is_installed && !args.force {
        let waiting = offline_status(settings).await?.lag.map_or(0, |lag| lag.changes);
        if waiting > 0 {
            return Err(Error::new(
                Kind::Config,
                "remove capture",
                format!("the cloud has not accepted {waiting} changes that wait"),
            )
            .remedy("let `cloud-sync run` deliver them first, or discard them with --force"));
        }
    }
    let detached = install::uninstall(settings.require_database_url()?).await?;
    output::print(
        context.json,
        &json!({"success": true, "detached": detached}),
        |_| match detached.len() {
            0 => "capture was not installed".to_owned(),
            count => format!("capture removed from {count} tables, and the outbox with it"),
        },
    )?;
    Ok(ExitCode::SUCCESS)
}
