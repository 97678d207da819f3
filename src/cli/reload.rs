//! Reads the settings anew while a program runs: on SIGHUP, and when the file or `.env` has changed.
//!
//! Settings that cannot be read or used are refused as a whole, and the old ones stay. What a running program cannot take
//! is named; the rest is taken.

use std::time::Duration;

use tokio::signal::unix::Signal;

use super::Context;
use crate::config::{Loaded, Settings};
use crate::error::Result;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How long they must stay as they are before they are read.
const SETTLE: Duration = Duration::from_secs(1);

/// Follows the settings for as long as it is polled. `take` is given those that a running program can take.
pub(super) async fn follow(
    context: &Context,
    mut hangups: Option<Signal>,
    mut take: impl FnMut(&Loaded) -> Result<()>,
) {
    let mut now = context.loaded.clone();
    let mut seen = content(context, &now);
    let mut read = seen;
    loop {
        let asked = tokio::select! {
            asked = hangup(&mut hangups) => asked,
            () = tokio::time::sleep(if seen == read { LOOK } else { SETTLE }) => false,
        };
        let found = content(context, &now);
        // A file that still changes is being written.
        let changed = found == seen && found != read;
        seen = found;
        if !asked && !changed {
            continue;
        }
        read = found;
        match renew(context, &now, &mut take) {
            Ok(renewed) => now = renewed,
            Err(error) => {
                tracing::error!("the new settings are refused, and the old ones stay in force: {error}");
            }
        }
    }
}

fn renew(context: &Context, now: &Loaded, take: &mut impl FnMut(&Loaded) -> Result<()>) -> Result<Loaded> {
    let read = Settings::load(context.options.clone())?;
    let changes = read.changes(now);
    if !changes.restart.is_empty() {
        tracing::warn!(
            settings = changes.restart.join(", "),
            "these settings have changed and need a restart: the old ones stay in force until then"
        );
    }
    let renewed = read.over(now);
    if !changes.taken.is_empty() {
        take(&renewed)?;
    }
    tracing::info!(settings = changes.taken.join(", "), "the settings were read anew");
    Ok(renewed)
}

async fn hangup(hangups: &mut Option<Signal>) -> bool {
    if let Some(signal) = hangups
        && signal.recv().await.is_some()
    {
        return true;
    }
    std::future::pending().await
}

/// What the files hold now, as a hash.
fn content(context: &Context, loaded: &Loaded) -> blake3::Hash {
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
