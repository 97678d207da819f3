//! How many bytes left the site on which day: kept in the site's database while there is a budget, so that a
//! restart and another replicator go on counting.

use std::collections::BTreeMap;

use jiff::civil::Date;
use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::sql_template::statement;

fn failed(action: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| Error::postgres(format!("{action} how many bytes left the site"), error)
}

/// Adds bytes that left, by day.
pub(crate) async fn note(client: &Client, bytes: &BTreeMap<Date, u64>) -> Result<()> {
    let days: Vec<String> = bytes.keys().map(Date::to_string).collect();
    let bytes: Vec<i64> = bytes.values().map(|bytes| bytes.cast_signed()).collect();
    client
        .execute(statement!("traffic", "note"), &[&days, &bytes])
        .await
        .map_err(failed("note"))?;
    Ok(())
}

/// The bytes that left on this day, and in its month until then. What left more than a year before is forgotten.
pub(crate) async fn read(client: &Client, day: Date) -> Result<(u64, u64)> {
    let day = day.to_string();
    client
        .execute(statement!("traffic", "forget"), &[&day])
        .await
        .map_err(failed("forget"))?;
    let row = client
        .query_one(statement!("traffic", "read"), &[&day])
        .await
        .map_err(failed("read"))?;
    Ok((
        row.get::<_, i64>(0).cast_unsigned(),
        row.get::<_, i64>(1).cast_unsigned(),
    ))
}
