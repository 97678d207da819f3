//! Touches rows again: a repair is sent like any change.
//!
//! A touch only says that a row is to be read: the drain sends its state at that time. So nothing is locked,
//! and an open transaction that writes the same row does no harm: its own touch comes when it commits.

use tokio_postgres::Client;

use super::rows::join_array;
use crate::catalogue::{Catalogue, Entity};
use crate::error::{Error, Result};
use crate::sql_template::statement;
use crate::wire::json::{non_null_text, pick};

/// Keys a statement.
pub const CHUNK: usize = 5_000;

/// Touches the rows with these keys, JSON objects of the key columns, whether or not they exist. Keys with
/// other columns than the entity's key has now belong to no row, and are skipped. `number` is the entity's
/// number in the outbox. Returns the number of the transaction: a checkpoint whose `lo` sees it has accepted
/// all of them; 0 if there was no key.
///
/// # Errors
/// The source's.
pub async fn keys<S: AsRef<str>>(client: &Client, entity: &Entity, number: i16, keys: &[S]) -> Result<u64> {
    let mut transaction = 0;
    for chunk in keys.chunks(CHUNK) {
        let (numbers, texts): (Vec<Option<i64>>, Vec<Option<String>>) =
            chunk.iter().filter_map(|key| parts(entity, key.as_ref())).unzip();
        if numbers.is_empty() {
            continue;
        }
        let row = client
            .query_one(statement!("touch", "touch"), &[&number, &numbers, &texts])
            .await
            .map_err(|error| Error::postgres(format!("touch rows of {}", entity.name), error))?;
        transaction = transaction.max(row.get::<_, i64>(0) as u64);
    }
    Ok(transaction)
}

/// The same for rows of any entities, by entity and key.
///
/// # Errors
/// The source's.
pub async fn rows(client: &Client, catalogue: &Catalogue, rows: &[(String, String)]) -> Result<()> {
    let names: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let known = client
        .query(statement!("touch", "entity_numbers"), &[&names])
        .await
        .map_err(|error| Error::postgres("read the entities' numbers", error))?;
    for row in &known {
        let (name, number): (&str, i16) = (row.get(0), row.get(1));
        let Some(entity_index) = catalogue.find(name) else {
            continue;
        };
        let of_entity = rows.iter().filter(|(entity, _)| entity == name);
        let of_entity: Vec<&str> = of_entity.map(|(_, key)| key.as_str()).collect();
        keys(client, &catalogue[entity_index], number, &of_entity).await?;
    }
    Ok(())
}

/// A key as the outbox has it; `None` if it is no JSON object of the key columns.
pub(crate) fn parts(entity: &Entity, key: &str) -> Option<(Option<i64>, Option<String>)> {
    let values = pick(key, &entity.key).ok()?;
    let texts: Vec<Option<String>> = values
        .into_iter()
        .map(|value| Some(Some(non_null_text(value?)?.into_owned())))
        .collect::<Option<_>>()?;
    match texts.as_slice() {
        [Some(text)] => Some(match text.parse::<i64>() {
            Ok(number) if number.to_string() == *text => (Some(number), None),
            _ => (None, Some(text.clone())),
        }),
        [_] | [] => None,
        several => Some((None, Some(join_array(several)))),
    }
}
