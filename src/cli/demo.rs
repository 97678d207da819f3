//! `demo`: a whole site with its cloud, live.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Context, output};
use crate::demo;
use crate::error::Result;
use crate::shutdown::Shutdown;

const EXAMPLES: &str = "\
Examples:
  cloud-sync demo                  watch a sample school replicate; Ctrl-C ends it
  cloud-sync demo --once           replicate it, compare both sides, print the report, and end
  cloud-sync demo --once --keep /tmp/school   and leave everything in that folder";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DemoArgs {
    /// End when the cloud equals the site, and print the report
    #[arg(long)]
    once: bool,
    /// Keep databases and files in this folder instead of a temporary one
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// The seed of the sample school
    #[arg(long, value_name = "N", default_value_t = 2026)]
    seed: u64,
}

pub(super) async fn execute(context: &Context, args: DemoArgs) -> Result<ExitCode> {
    let shutdown = Shutdown::listen()?;
    let options = demo::DemoOptions {
        folder: args.keep,
        seed: args.seed,
        once: args.once,
    };
    let report = demo::run_demo(options, shutdown.token(), |line| eprintln!("{line}")).await?;
    let Some(report) = report else {
        return Ok(ExitCode::SUCCESS);
    };
    output::print(context.json, &report, ToString::to_string)?;
    Ok(if report.equal() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
