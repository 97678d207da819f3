//! Rows in quarantine that are retried without an operator, and rows that an operator has set aside.

use tokio_postgres::Client;

use super::{BY_HAND, QuarantineEntry, RELEASED};
use crate::batch::Fate;
use crate::error::Result;
use crate::source::quarantine as entries;

/// Rows that are due for a retry.
#[derive(Debug, Default)]
pub(crate) struct DueRows {
    /// The rows that are due, by entity and key.
    pub(crate) rows: Vec<(String, String)>,
    /// Seconds until the next row is due.
    pub(crate) next: Option<f64>,
    /// How many rows wait for a retry or are set aside by hand.
    pub(crate) total: i64,
    /// How many of them were set aside by hand.
    pub(crate) by_hand: i64,
}

/// Finds rows that are due for a retry.
///
/// # Errors
/// The source's.
pub(crate) async fn due(client: &Client, limit: i64) -> Result<DueRows> {
    let counts = entries::due_counts(client, BY_HAND).await?;
    Ok(DueRows {
        rows: if counts.all > 0 {
            entries::due(client, limit).await?
        } else {
            Vec::new()
        },
        next: counts.next,
        total: counts.all,
        by_hand: counts.by_hand,
    })
}

/// Postpones the next retry of rows that were just touched again: the cloud answers before that, or they are
/// touched once more.
///
/// # Errors
/// The source's.
pub(crate) async fn postpone(client: &Client, rows: &[(String, String)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    entries::put_off(client, rows).await
}

/// Rows that are in quarantine for another reason than a refusal, by their indexes in the list that was asked
/// for.
#[derive(Debug, Default)]
pub(crate) struct OtherwiseQuarantined {
    /// They are retried without an operator, and are expected to fail.
    pub(crate) failing: Vec<usize>,
    /// An operator has set them aside.
    pub(crate) by_hand: Vec<usize>,
}

/// Finds which of these rows, by entity and key, must not be sent like others.
///
/// # Errors
/// The source's.
pub(crate) async fn otherwise_quarantined(
    client: &Client,
    rows: &[(&str, &str)],
) -> Result<OtherwiseQuarantined> {
    let mut quarantined = OtherwiseQuarantined::default();
    for (row_index, by_hand) in entries::expected(client, rows, BY_HAND).await? {
        if by_hand {
            quarantined.by_hand.push(row_index);
        } else {
            quarantined.failing.push(row_index);
        }
    }
    Ok(quarantined)
}

/// The fate of a change whose row an operator has set aside.
pub(crate) fn set_aside_fate() -> Fate {
    Fate::Refused {
        code: BY_HAND as u16,
        error: "an operator has set it aside".to_owned(),
    }
}

/// Sets a row aside by hand: from the next delivery on it is not sent until it is retried or discarded.
///
/// # Errors
/// The source's.
pub async fn add(client: &Client, entity: &str, key: &str) -> Result<()> {
    entries::set_aside(client, entity, key, BY_HAND).await
}

/// Makes at most `limit` of the rows that wait for a retry due now. Returns how many.
pub(super) async fn bring_forward(client: &Client, limit: i64) -> Result<u64> {
    if limit == 0 {
        return Ok(0);
    }
    entries::put_forward(client, limit).await
}

/// Releases rows that an operator has set aside.
pub(super) async fn release_by_hand(client: &Client, entries: &[QuarantineEntry]) -> Result<()> {
    let by_hand = entries.iter().filter(|entry| entry.code == BY_HAND);
    let (entities, keys): (Vec<&str>, Vec<&str>) = by_hand
        .map(|entry| (entry.entity.as_str(), entry.key.as_str()))
        .unzip();
    if keys.is_empty() {
        return Ok(());
    }
    entries::release_by_hand(client, &entities, &keys, (BY_HAND, RELEASED)).await
}
