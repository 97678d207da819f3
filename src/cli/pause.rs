//! `pause` and `resume`: whether rows and files are sent. Capture goes on.
//!
//! A pause is in the site's database: every replicator of it obeys, now or when it starts.

use std::process::ExitCode;

use clap::Args;

use super::{Context, SiteFlags, output};
use crate::control::{PauseRequest, PauseScope, PauseStatus, Pauses};
use crate::error::Result;
use crate::replicator::connect;
use crate::source::{install, pauses};

const PAUSE_EXAMPLES: &str = "\
Examples:
  cloud-sync pause
  cloud-sync pause --entity rooms
  cloud-sync pause --files";

const RESUME_EXAMPLES: &str = "\
Examples:
  cloud-sync resume
  cloud-sync resume --entity rooms
  cloud-sync resume --files";

#[derive(Debug, Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub(super) struct PauseArgs {
    /// Only this entity
    #[arg(long, value_name = "NAME", conflicts_with = "files")]
    entity: Option<String>,
    /// Only files
    #[arg(long)]
    files: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Debug, Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub(super) struct ResumeArgs {
    /// Only this entity, if it was paused alone
    #[arg(long, value_name = "NAME", conflicts_with = "files")]
    entity: Option<String>,
    /// Only files, if they were paused alone
    #[arg(long)]
    files: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

pub(super) async fn pause(context: &Context, args: PauseArgs) -> Result<ExitCode> {
    let PauseArgs { entity, files, .. } = args;
    execute(context, PauseRequest { entity, files }, true).await
}

pub(super) async fn resume(context: &Context, args: ResumeArgs) -> Result<ExitCode> {
    let ResumeArgs { entity, files, .. } = args;
    execute(context, PauseRequest { entity, files }, false).await
}

async fn execute(context: &Context, request: PauseRequest, pauses: bool) -> Result<ExitCode> {
    let settings = &context.completed_settings().await?;
    let scope = request.scope()?;
    scope.check(&settings.catalogue)?;
    let session = connect(settings, "pause").await?;
    let client = session.client();
    if !install::installed(client).await? {
        return Err(install::not_installed());
    }
    let changed = if pauses {
        pauses::pause(client, &scope, &user()).await?
    } else {
        pauses::resume(client, &scope).await?
    };
    let status = PauseStatus {
        success: true,
        changed,
        paused: pauses::read(client).await?,
    };
    output::print(context.json, &status, |status| {
        let mut text = if pauses {
            describe_pause(&scope, status)
        } else {
            describe_resume(&scope, status)
        };
        for left in others(&scope, &status.paused) {
            text.push('\n');
            text.push_str(&left);
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

fn describe_pause(scope: &PauseScope, status: &PauseStatus) -> String {
    if status.changed {
        format!(
            "{scope} is paused: a running replicator obeys within a second, and capture goes on. It stays so \
             until `cloud-sync resume`, also after a restart"
        )
    } else {
        format!("{scope} was paused already")
    }
}

fn describe_resume(scope: &PauseScope, status: &PauseStatus) -> String {
    if status.changed {
        format!("{scope} is resumed: a running replicator sends what was kept")
    } else {
        format!("{scope} was not paused")
    }
}

/// What else is paused, a line each.
fn others(scope: &PauseScope, paused: &Pauses) -> Vec<String> {
    let entities = paused.entities.iter();
    let entities = entities.map(|(name, pause)| (PauseScope::Entity(name.clone()), pause));
    let all = paused.all.iter().map(|pause| (PauseScope::All, pause));
    let files = paused.files.iter().map(|pause| (PauseScope::Files, pause));
    all.chain(files)
        .chain(entities)
        .filter(|(other, _)| other != scope)
        .map(|(other, pause)| format!("{other} is {pause}"))
        .collect()
}

/// Who runs this program, as others read it.
fn user() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|variable| std::env::var(variable).ok().filter(|name| !name.is_empty()));
    let name = name.unwrap_or_else(|| "somebody at the command line".to_owned());
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(host) => format!("{name} on {}", host.trim()),
        Err(_) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Pause;

    #[test]
    fn what_else_is_paused_is_told() {
        let pause = Pause {
            since: "2026-11-30T12:00:00Z".parse().unwrap(),
            by: "anna".to_owned(),
        };
        let paused = Pauses {
            all: Some(pause.clone()),
            files: None,
            entities: [("rooms".to_owned(), pause)].into(),
        };
        let told = others(&PauseScope::All, &paused);
        assert_eq!(
            told,
            ["replication of rooms is paused since 2026-11-30T12:00:00Z by anna"]
        );
    }
}
