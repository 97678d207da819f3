//! `upgrade`: brings capture in the site's database up to this version of the program.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::check::describe_finding;
use super::{Context, SiteFlags, output};
use crate::error::Result;
use crate::replicator::upgrade::{self, UpgradeCheck};
use crate::source::schema_version::SchemaVersion;

const EXAMPLES: &str = "\
Examples:
  cloud-sync upgrade --check       before an upgrade: do the database, the cloud and this version fit?
  cloud-sync upgrade               after it, while no replicator runs
  cloud-sync upgrade --check --json

Exit codes of --check: 0 they understand each other, at once or after `cloud-sync upgrade`; 2 they do not;
3 the site's database is unreachable; 4 the cloud is unreachable or refused the key.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UpgradeArgs {
    /// Change nothing: say whether the schema in the database, the cloud and this program understand each
    /// other
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Serialize)]
struct UpgradeReport {
    /// The entities whose capture was made again.
    renewed: Vec<String>,
    /// The entities whose capture was as it should be.
    unchanged: Vec<String>,
}

pub(super) async fn execute(context: &Context, args: UpgradeArgs) -> Result<ExitCode> {
    let settings = context.settings();
    let check = if args.check {
        upgrade::check(settings).await
    } else {
        upgrade::check_database(settings).await
    };
    let is_installed = check.schema != Some(SchemaVersion::NotInstalled);
    if args.check || !check.compatible || !is_installed {
        output::print(context.json, &check, describe_check)?;
        return Ok(check.exit_code().map_or(ExitCode::SUCCESS, ExitCode::from));
    }
    let installed = upgrade::upgrade(settings, &check).await?;
    let report = UpgradeReport {
        renewed: installed.attached,
        unchanged: installed.unchanged,
    };
    output::print(context.json, &report, describe_report)?;
    Ok(ExitCode::SUCCESS)
}

fn describe_check(check: &UpgradeCheck) -> String {
    let mut lines: Vec<String> = check.findings.iter().map(describe_finding).collect();
    let is_installed = check.schema != Some(SchemaVersion::NotInstalled);
    let verdict = match (check.compatible, check.needs_upgrade) {
        (false, _) => "is not ready for this site",
        (true, true) => "fits this site after `cloud-sync upgrade`",
        (true, false) if is_installed => "fits this site as it is",
        (true, false) => "fits this site after `cloud-sync init`",
    };
    lines.push(format!("cloud-sync {} {verdict}", check.program));
    lines.join("\n")
}

fn describe_report(report: &UpgradeReport) -> String {
    let mut lines = Vec::new();
    for (names, outcome) in [
        (&report.renewed, "capture renewed"),
        (&report.unchanged, "already in place"),
    ] {
        lines.extend(names.iter().map(|name| format!("{name:<24} {outcome}")));
    }
    lines.push("capture is of this version; start `cloud-sync run`".to_owned());
    lines.join("\n")
}
