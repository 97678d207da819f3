//! Reads the settings again while a program runs: on SIGHUP, and when the file or `.env` has changed.
//!
//! If the new settings cannot be read or used, all of them are refused, and the old ones stay in force. If
//! they can, the program takes what it can take while it runs, and the log names what needs a restart.

use std::time::Duration;

use tokio::signal::unix::Signal;

use super::{Context, service_manager};
use crate::catalogue::Catalogue;
use crate::config::{Loaded, Settings};
use crate::error::Result;

/// How often the files are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long the files must be unchanged before they are read.
const SETTLE: Duration = Duration::from_secs(1);

/// Follows the settings as long as it is polled. It calls `apply` with the settings that a running program
/// can take. `catalogue` is the one that it runs with.
pub(super) async fn follow_changes(
    context: &Context,
    catalogue: &Catalogue,
    mut hangups: Option<Signal>,
    mut apply: impl FnMut(&Loaded) -> Result<()>,
) {
    let mut current = context.loaded.clone();
    current.settings.catalogue = catalogue.clone();
    let mut last_hash = hash_files(context, &current);
    let mut loaded_hash = last_hash;
    loop {
        let is_requested = tokio::select! {
            asked = next_hangup(&mut hangups) => asked,
            () = tokio::time::sleep(if last_hash == loaded_hash { CHECK_INTERVAL } else { SETTLE }) => false,
        };
        let hash = hash_files(context, &current);
        // A file that still changes is being written.
        let is_changed = hash == last_hash && hash != loaded_hash;
        last_hash = hash;
        if !is_requested && !is_changed {
            continue;
        }
        loaded_hash = hash;
        service_manager::notify_reloading();
        match reload_settings(context, &current, &mut apply) {
            Ok(renewed) => current = renewed,
            Err(error) => {
                tracing::error!("the new settings are refused, and the old ones stay in force: {error}");
            }
        }
        service_manager::notify_ready();
    }
}

fn reload_settings(
    context: &Context,
    current: &Loaded,
    apply: &mut impl FnMut(&Loaded) -> Result<()>,
) -> Result<Loaded> {
    let loaded = Settings::load(context.options.clone())?;
    let changes = loaded.changes(current);
    if !changes.restart.is_empty() {
        tracing::warn!(
            settings = changes.restart.join(", "),
            "these settings have changed and need a restart: the old ones stay in force until then"
        );
    }
    let renewed = loaded.applied_over(current);
    if !changes.taken.is_empty() {
        apply(&renewed)?;
    }
    tracing::info!(
        settings = changes.taken.join(", "),
        "the settings were read again"
    );
    Ok(renewed)
}

async fn next_hangup(hangups: &mut Option<Signal>) -> bool {
    if let Some(signal) = hangups
        && signal.recv().await.is_some()
    {
        return true;
    }
    std::future::pending().await
}

/// A hash of the files' content.
fn hash_files(context: &Context, loaded: &Loaded) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for file in loaded
        .file
        .iter()
        .cloned()
        .chain([context.options.dir.join(".env")])
    {
        let text = std::fs::read(file).unwrap_or_default();
        hasher.update(&(text.len() as u64).to_le_bytes()).update(&text);
    }
    hasher.finalize()
}
