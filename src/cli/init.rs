//! `init`: installs capture in the site's database.

use std::process::ExitCode;

use clap::Args;

use serde::Serialize;

use super::{Context, SiteFlags, output};
use crate::error::Result;
use crate::replicator::complete_settings;
use crate::source::complete::PatternScope;
use crate::source::identity::OutboxDeclaration;
use crate::source::install::{self, Installed};

const EXAMPLES: &str = "\
Examples:
  cloud-sync init                  install capture, or bring it up to date
  cloud-sync init --new-epoch      after the database was restored from a dump
  cloud-sync init --same-outbox    after the server was upgraded by pg_upgrade";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct InitArgs {
    /// Declare the outbox a new one, after a restore: its touches are dropped, and a running replicator
    /// compares every entity with the cloud
    #[arg(long)]
    pub(super) new_epoch: bool,
    /// Declare that it is the same outbox on another server, after pg_upgrade: nothing is dropped
    #[arg(long, conflicts_with = "new_epoch")]
    pub(super) same_outbox: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Debug, Serialize)]
struct InitAnswer {
    epoch: i64,
    attached: Vec<String>,
    unchanged: Vec<String>,
    detached: Vec<String>,
}

pub(super) async fn execute(context: &Context, args: InitArgs) -> Result<ExitCode> {
    let settings = complete_settings(context.settings(), PatternScope::All).await?;
    let declared = match (args.new_epoch, args.same_outbox) {
        (true, _) => OutboxDeclaration::NewEpoch,
        (false, true) => OutboxDeclaration::Same,
        (false, false) => OutboxDeclaration::Nothing,
    };
    let Installed {
        attached,
        unchanged,
        detached,
        epoch,
    } = install::init(settings.require_database_url()?, &settings.catalogue, declared).await?;
    let answer = InitAnswer {
        epoch,
        attached,
        unchanged,
        detached,
    };
    output::print(context.json, &answer, describe)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(answer: &InitAnswer) -> String {
    let mut lines = Vec::new();
    for (names, outcome) in [
        (&answer.attached, "capture installed"),
        (&answer.unchanged, "already in place"),
        (&answer.detached, "no longer in the catalogue: capture removed"),
    ] {
        lines.extend(names.iter().map(|name| format!("{name:<24} {outcome}")));
    }
    lines.push(format!("capture is in place, epoch {}", answer.epoch));
    if !answer.attached.is_empty() {
        lines.push(
            "`cloud-sync backfill` pushes the rows that are there already, `cloud-sync run` each change from \
             now on"
                .to_owned(),
        );
    }
    lines.join("\n")
}
