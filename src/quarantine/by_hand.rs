//! What an operator decides on single rows in quarantine, which the positions of their touches name.

use tokio_postgres::Client;

use super::{QuarantineEntry, at_positions, discard, retry};
use crate::catalogue::Catalogue;
use crate::change::Position;
use crate::error::{Error, Result};
use crate::source::{describe, install};

/// Touches the rows of these entries again, so that their present states are delivered. Returns how many.
///
/// # Errors
/// The source's; a configuration error if no entry has one of the positions.
pub async fn retry_at(client: &Client, catalogue: &Catalogue, positions: &[Position]) -> Result<usize> {
    let entries = entries_at(client, positions).await?;
    let tables = describe::present_tables(client, catalogue).await?;
    let attached = install::attached(client, catalogue, &tables).await?;
    retry(client, catalogue, &attached, &entries).await
}

/// Deletes these entries: the cloud stays without these changes. Returns how many.
///
/// # Errors
/// The source's; a configuration error if no entry has one of the positions.
pub async fn discard_at(client: &Client, positions: &[Position]) -> Result<u64> {
    discard(client, &entries_at(client, positions).await?).await
}

/// The error of a position that no entry has.
pub(crate) fn no_such_entry(position: Position) -> Error {
    Error::config(
        format!("find position {position} in quarantine"),
        "no refused change has it",
    )
    .remedy("see `cloud-sync quarantine list`")
}

/// The entries at these positions. Returns an error if there is none at one of them.
async fn entries_at(client: &Client, positions: &[Position]) -> Result<Vec<QuarantineEntry>> {
    let entries = at_positions(client, positions).await?;
    match positions
        .iter()
        .find(|position| !entries.iter().any(|entry| entry.position == position.0))
    {
        Some(position) => Err(no_such_entry(*position)),
        None => Ok(entries),
    }
}
