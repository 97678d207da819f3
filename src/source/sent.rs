//! What the site must remember for a server without `changes`: which rows of entities with a condition it may
//! have, and which rows were sent in a request that got no answer.

use std::collections::HashSet;
use std::time::Duration;

use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::sql_template::statement;

/// A key's hash, as the table has it.
fn digest(key: &str) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..16]);
    digest
}

/// A digest in the text form of a UUID.
fn uuid(key: &str) -> String {
    let hex: String = digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} the keys that the cloud may have"), error)
}

/// Notes keys that are about to be sent, while the term is this one; a comparison has no `term`, and is not
/// fenced.
///
/// # Errors
/// The source's.
pub async fn note(client: &Client, term: Option<i64>, entity: i16, keys: &[&str]) -> Result<()> {
    let digests: Vec<String> = keys.iter().map(|key| uuid(key)).collect();
    client
        .execute(statement!("sent", "note"), &[&term, &entity, &digests])
        .await
        .map_err(failed("note"))?;
    Ok(())
}

/// Which of the keys the cloud may have.
///
/// # Errors
/// The source's.
pub async fn known<'a>(client: &Client, entity: i16, keys: &[&'a str]) -> Result<HashSet<&'a str>> {
    let digests: Vec<String> = keys.iter().map(|key| uuid(key)).collect();
    let rows = client
        .query(statement!("sent", "known"), &[&entity, &digests])
        .await
        .map_err(failed("read"))?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            keys.get(usize::try_from(row.get::<_, i64>(0)).ok()?.checked_sub(1)?)
                .copied()
        })
        .collect())
}

/// Forgets keys whose delete the cloud has accepted, while the term is this one.
///
/// # Errors
/// The source's.
pub async fn forget(client: &Client, term: i64, entity: i16, keys: &[&str]) -> Result<()> {
    let digests: Vec<String> = keys.iter().map(|key| uuid(key)).collect();
    client
        .execute(statement!("sent", "forget"), &[&term, &entity, &digests])
        .await
        .map_err(failed("forget"))?;
    Ok(())
}

/// Notes rows whose request got no answer, by entity and key: in `life` it can no longer arrive.
///
/// # Errors
/// The source's.
pub async fn unanswered(client: &Client, term: i64, rows: &[(&str, &str)], life: Duration) -> Result<()> {
    let (entities, keys): (Vec<&str>, Vec<&str>) = rows.iter().copied().unzip();
    client
        .execute(
            statement!("unanswered", "note"),
            &[&term, &entities, &keys, &life.as_secs_f64()],
        )
        .await
        .map_err(|error| Error::postgres("note rows whose request got no answer", error))?;
    Ok(())
}

/// Rows whose request can no longer arrive, by entity and key, and when the next one's time is over, in
/// seconds.
///
/// # Errors
/// The source's.
pub async fn overdue(client: &Client, limit: i64) -> Result<(Vec<(String, String)>, Option<f64>)> {
    let failed = |error| Error::postgres("read rows whose request got no answer", error);
    let rows = client
        .query(statement!("unanswered", "overdue"), &[&limit])
        .await
        .map_err(failed)?;
    let next = client
        .query_one(statement!("unanswered", "next_due"), &[])
        .await
        .map_err(failed)?;
    let rows = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok((rows, next.get(0)))
}

/// Forgets rows that were touched again.
///
/// # Errors
/// The source's.
pub async fn answered(client: &Client, rows: &[(String, String)]) -> Result<()> {
    let (entities, keys): (Vec<&str>, Vec<&str>) =
        rows.iter().map(|(entity, key)| (&**entity, &**key)).unzip();
    client
        .execute(statement!("unanswered", "forget"), &[&entities, &keys])
        .await
        .map_err(|error| Error::postgres("forget rows whose request got no answer", error))?;
    Ok(())
}
