//! Rows in quarantine that are touched again by themselves, and rows that an operator has set aside.

use tokio_postgres::Client;

use super::{BY_HAND, QuarantineEntry, RELEASED, failed};
use crate::batch::Fate;
use crate::error::Result;

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
    let all = client
        .query_one(
            "select extract(epoch from min(next_attempt) filter (where next_attempt > now()) - now())::float8, count(*), \
             count(*) filter (where code = $1) from cloud_sync.quarantine where next_attempt is not null or code = $1",
            &[&BY_HAND],
        )
        .await
        .map_err(failed("look into"))?;
    let mut due = DueRows {
        next: all.get(0),
        all: all.get(1),
        by_hand: all.get(2),
        ..DueRows::default()
    };
    if due.all > 0 {
        let rows = client
            .query(
                "select entity, key from cloud_sync.quarantine where next_attempt <= now() and op <> 't' \
                 order by next_attempt limit $1",
                &[&limit],
            )
            .await
            .map_err(failed("look into"))?;
        due.rows = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    }
    Ok(due)
}

/// Puts rows off that were touched again: they are answered before that, or touched once more.
///
/// # Errors
/// The source's.
pub(crate) async fn put_off(client: &Client, rows: &[(String, String)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (entities, keys): (Vec<&str>, Vec<&str>) =
        rows.iter().map(|(entity, key)| (&**entity, &**key)).unzip();
    client
        .execute(
            "update cloud_sync.quarantine q set next_attempt = now() + interval '1 hour' \
             from unnest($1::text[], $2::text[]) a (entity, key) \
             where q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key and q.next_attempt <= now()",
            &[&entities, &keys],
        )
        .await
        .map_err(failed("write to"))?;
    Ok(())
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
    let (entities, keys): (Vec<&str>, Vec<&str>) = rows.iter().copied().unzip();
    let found = client
        .query(
            "select a.nth, q.code = $3 from unnest($1::text[], $2::text[]) with ordinality a (entity, key, nth) \
             join cloud_sync.quarantine q on q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key \
             where q.next_attempt is not null or q.code = $3",
            &[&entities, &keys, &BY_HAND],
        )
        .await
        .map_err(failed("look into"))?;
    let mut expected = OtherwiseQuarantined::default();
    for row in &found {
        let place = row.get::<_, i64>(0) as usize - 1;
        if row.get(1) {
            expected.by_hand.push(place);
        } else {
            expected.failing.push(place);
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
    client
        .execute(
            "insert into cloud_sync.quarantine (entity, key, position, op, code, error) \
             values ($1, $2, (select last_value from cloud_sync.position), 'u', $3, 'an operator has set it aside') \
             on conflict (entity, md5(key)) do update set code = excluded.code, error = excluded.error, \
             provisional = false, next_attempt = null",
            &[&entity, &key, &BY_HAND],
        )
        .await
        .map_err(failed("write to"))?;
    Ok(())
}

/// The images of first refusals of these rows, by entity and key: what they lack may be brought to the cloud
/// before they are tried again.
///
/// # Errors
/// The source's.
pub(crate) async fn first_images(
    client: &Client,
    rows: &[(String, String)],
) -> Result<Vec<(String, String)>> {
    let (entities, keys): (Vec<&str>, Vec<&str>) =
        rows.iter().map(|(entity, key)| (&**entity, &**key)).unzip();
    let rows = client
        .query(
            "select q.entity, q.image from unnest($1::text[], $2::text[]) a (entity, key) \
             join cloud_sync.quarantine q on q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key \
             where q.attempts <= 1 and q.op = 'u' and q.image is not null",
            &[&entities, &keys],
        )
        .await
        .map_err(failed("look into"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Lets the next rows be touched again now that wait for their time, so many at most. Returns how many.
pub(super) async fn put_forward(client: &Client, limit: i64) -> Result<u64> {
    if limit == 0 {
        return Ok(0);
    }
    client
        .execute(
            "update cloud_sync.quarantine set next_attempt = now() where (entity, md5(key)) in (\
                 select entity, md5(key) from cloud_sync.quarantine where next_attempt > now() order by next_attempt limit $1)",
            &[&limit],
        )
        .await
        .map_err(failed("write to"))
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
    client
        .execute(
            "update cloud_sync.quarantine q set code = $4, error = 'it is sent again' \
             from unnest($1::text[], $2::text[]) a (entity, key) \
             where q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key and q.code = $3",
            &[&entities, &keys, &BY_HAND, &RELEASED],
        )
        .await
        .map_err(failed("write to"))?;
    Ok(())
}
