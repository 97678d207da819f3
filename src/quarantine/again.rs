//! Rows in quarantine that are touched again by themselves, and rows that an operator has set aside.

use tokio_postgres::Client;

use super::{BY_HAND, QuarantineEntry, RELEASED};
use crate::batch::Fate;
use crate::error::Result;
use crate::source::quarantine as entries;

/// Rows that are to be touched again by themselves.
#[derive(Debug, Default)]
pub(crate) struct DueRows {
    /// Those whose time has come, by entity and key.
    pub(crate) rows: Vec<(String, String)>,
    /// Seconds until the next one's time.
    pub(crate) next: Option<f64>,
    /// How many there are in all, with those that were set aside by hand.
    pub(crate) all: i64,
    /// How many of them were set aside by hand.
    pub(crate) by_hand: i64,
}

/// Looks for rows that are to be touched again by themselves.
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
        all: counts.all,
        by_hand: counts.by_hand,
    })
}

/// Puts rows off that were touched again: they are answered before that, or touched once more.
///
/// # Errors
/// The source's.
pub(crate) async fn put_off(client: &Client, rows: &[(String, String)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    entries::put_off(client, rows).await
}

/// Rows that are in quarantine for another reason than a refusal, by their places among those that were asked
/// for.
#[derive(Debug, Default)]
pub(crate) struct OtherwiseQuarantined {
    /// They are touched again by themselves, and are expected to fail.
    pub(crate) failing: Vec<usize>,
    /// An operator has set them aside.
    pub(crate) by_hand: Vec<usize>,
}

/// Which of these rows, by entity and key, are not to be sent like others.
///
/// # Errors
/// The source's.
pub(crate) async fn expected(client: &Client, rows: &[(&str, &str)]) -> Result<OtherwiseQuarantined> {
    let mut expected = OtherwiseQuarantined::default();
    for (row_index, by_hand) in entries::expected(client, rows, BY_HAND).await? {
        if by_hand {
            expected.by_hand.push(row_index);
        } else {
            expected.failing.push(row_index);
        }
    }
    Ok(expected)
}

/// What becomes of a change whose row an operator has set aside.
pub(crate) fn by_hand() -> Fate {
    Fate::Refused {
        code: BY_HAND as u16,
        error: "an operator has set it aside".to_owned(),
    }
}

/// Sets a row aside by hand: from the next delivery on it is not sent, until it is retried or discarded.
///
/// # Errors
/// The source's.
pub async fn add(client: &Client, entity: &str, key: &str) -> Result<()> {
    entries::set_aside(client, entity, key, BY_HAND).await
}

/// Lets the next rows be touched again now that wait for their time, so many at most. Returns how many.
pub(super) async fn put_forward(client: &Client, limit: i64) -> Result<u64> {
    if limit == 0 {
        return Ok(0);
    }
    entries::put_forward(client, limit).await
}

/// Lets rows go again that an operator has set aside.
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
