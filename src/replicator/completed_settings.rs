//! Settings whose catalogue the site's database has completed.

use super::source_status::connect;
use crate::config::Settings;
use crate::error::{Class, Error, Result};
use crate::source::complete::{self, PatternScope};

/// The settings with the catalogue that can be used: the tables that patterns take, keys and names that the
/// configuration leaves out, parents before their children.
///
/// If the database cannot be reached and the configuration says everything but the order, the order is the
/// configuration's.
///
/// # Errors
/// The source's; a configuration error with all faults.
pub(crate) async fn complete_settings(settings: &Settings, scope: PatternScope) -> Result<Settings> {
    let mut settings = settings.clone();
    let Some(declared) = &settings.declared else {
        return Ok(settings);
    };
    let completed = async {
        let session = connect(&settings, "catalogue").await?;
        complete::complete(session.client(), declared, scope).await
    };
    let completed = match completed.await {
        Ok(completed) => completed,
        Err(error) if error.class() == Class::Retry && declared.is_complete() => {
            tracing::warn!("the order of the entities is that of the configuration for now: {error}");
            return Ok(settings);
        }
        Err(error) => return Err(error),
    };
    for reference in &completed.against_order {
        tracing::info!("{reference}");
    }
    for (table, why) in &completed.left_out {
        tracing::info!(table, "is not replicated: {why}");
    }
    if !completed.uncaptured.is_empty() {
        tracing::warn!(
            tables = completed.uncaptured.join(", "),
            "match catalogue.tables and are not captured: run `cloud-sync init`, and start again"
        );
    }
    if completed.entities.is_empty() && !completed.uncaptured.is_empty() {
        return Err(Error::config(
            "find what is replicated",
            "no table that catalogue.tables takes is captured",
        )
        .remedy("run `cloud-sync init`"));
    }
    settings.catalogue = completed.into_catalogue()?;
    Ok(settings)
}

/// Fails if only the site's database can tell which entities there are, and was not asked.
pub(super) fn must_be_complete(settings: &Settings) -> Result<()> {
    let is_complete = settings
        .declared
        .as_ref()
        .is_none_or(|declared| declared.is_complete());
    if is_complete || !settings.catalogue.entities().is_empty() {
        return Ok(());
    }
    Err(Error::config(
        "make a replicator",
        "its settings name tables by patterns, or entities without a key, which only the site's database can \
         complete",
    )
    .remedy("use the settings that Replicator::complete_settings returns"))
}
