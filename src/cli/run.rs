//! `run`: replicates continuously and serves the operator API.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Context, SiteFlags, given_flags, reload, service_manager};
use crate::config::Settings;
use crate::control::{page_url, sentence_of, token};
use crate::error::{Class, Result};
use crate::liveness::Liveness;
use crate::replicator::Replicator;
use crate::retry::{Backoff, waits};
use crate::shutdown::Shutdown;
use crate::supervise::pause_or_stop;

const EXAMPLES: &str = "\
Examples:
  cloud-sync run
  cloud-sync run --config /etc/cloud-sync/cloud-sync.toml
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
        overrides.extend(given_flags([("control.listen", &self.listen)]));
        overrides
    }
}

/// Says where the page is, and where its token is.
fn tell_page(settings: &Settings) -> impl FnOnce(SocketAddr) + Send + 'static {
    let token = token::describe_place(settings);
    move |address| {
        let page = page_url(address);
        tracing::info!(%address, page, token, "the operator API listens");
        service_manager::notify_ready();
    }
}

pub(super) async fn execute(context: &Context, _args: RunArgs) -> Result<ExitCode> {
    let mut shutdown = Shutdown::listen()?;
    let stop = shutdown.token();
    let Some(settings) = settings_of_database(context, &stop).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let replicator = Replicator::new(&settings)?;
    // As a spawned task, it is woken on the thread where its event arrives. Without `spawn` it would run on
    // the main thread, and each wake-up would cross threads.
    let run = AbortOnDropHandle::new(tokio::spawn(
        replicator
            .clone()
            .run(stop.clone(), tell_page(context.settings())),
    ));
    let liveness = replicator.liveness();
    let sentence = || sentence_of(&replicator.known_status());
    tokio::select! {
        biased;
        never = service_manager::keep_informed(&liveness, &stop, sentence) => match never {},
        ran = run => ran.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?,
        () = reload::follow_changes(context, &settings.catalogue, shutdown.hangups(), |loaded| replicator.reload(loaded)) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The settings with the catalogue that the site's database completes. As long as it cannot be reached, it is
/// asked again; `None` if `shutdown` comes first.
async fn settings_of_database(context: &Context, shutdown: &CancellationToken) -> Result<Option<Settings>> {
    let is_away = AtomicBool::new(false);
    let liveness = Liveness::default();
    let sentence = || match is_away.load(Ordering::Relaxed) {
        true => "The site's database is not reachable. Look whether PostgreSQL runs.".to_owned(),
        false => "cloud-sync is starting.".to_owned(),
    };
    tokio::select! {
        biased;
        never = service_manager::keep_informed(&liveness, shutdown, sentence) => match never {},
        settings = ask_until_told(context, shutdown, &is_away) => settings,
    }
}

async fn ask_until_told(
    context: &Context,
    shutdown: &CancellationToken,
    is_away: &AtomicBool,
) -> Result<Option<Settings>> {
    let mut backoff = Backoff::of(waits::DRAIN);
    loop {
        let completed = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            completed = context.completed_settings() => completed,
        };
        match completed {
            Ok(settings) => return Ok(Some(settings)),
            Err(error) if error.class() == Class::Retry => {
                tracing::warn!("the site's database has to tell the tables of the catalogue: {error}");
                // The start of the machine must not wait for a database that is away.
                is_away.store(true, Ordering::Relaxed);
                service_manager::notify_ready();
                pause_or_stop(backoff.next(None), shutdown).await;
            }
            Err(error) => return Err(error),
        }
    }
}
