//! Fills the sample school: the rows of nine tables and the media files that they name.
//!
//! The same seed gives the same school, dated back from the hour in which it is made. Of each table with a retention
//! window a good part lies inside the window and a good part outside. Rows go in by COPY, in one transaction,
//! which commits when every file is written.

use std::path::Path;

use serde::Serialize;
use tokio_postgres::NoTls;

use super::media_files::write_files;
pub use super::plan::SchoolSize;
use super::rows::School;
use crate::error::{Error, Result};

const SCHEMA: &str = include_str!("../../sql/sample_school.sql");

/// What a school has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SchoolCounts {
    /// Rows by table, in the catalogue's order.
    pub rows: Vec<(&'static str, u64)>,
    /// Media files.
    pub files: u64,
    /// Bytes of the media files.
    pub file_bytes: u64,
}

/// Makes the sample school of [`SchoolSize::full`] in an empty database and below a media root.
///
/// # Errors
/// As [`create_planned`].
pub async fn create(
    database_url: &str,
    media_root: &Path,
    seed: u64,
    progress: impl Fn(&str),
) -> Result<SchoolCounts> {
    create_planned(&SchoolSize::full(), database_url, media_root, seed, progress).await
}

/// Makes a sample school of this size.
///
/// # Errors
/// The database cannot be reached or has such tables already; a file cannot be written. The database then stays empty.
pub async fn create_planned(
    plan: &SchoolSize,
    database_url: &str,
    media_root: &Path,
    seed: u64,
    progress: impl Fn(&str),
) -> Result<SchoolCounts> {
    let broken = |error| Error::postgres("make the sample school", error);
    let (mut client, connection) = tokio_postgres::connect(database_url, NoTls)
        .await
        .map_err(broken)?;
    let connection = tokio::spawn(connection);
    let school = School::new(plan.clone(), seed);

    let transaction = client.transaction().await.map_err(broken)?;
    transaction.batch_execute(SCHEMA).await.map_err(|error| {
        broken(error).remedy("the sample school needs a database without such tables: name an empty one")
    })?;
    let mut rows = Vec::new();
    for sheet in school.sheets() {
        progress(&format!("{}: {} rows", sheet.table, sheet.rows));
        rows.push((sheet.table, sheet.copy(&transaction).await.map_err(broken)?));
    }
    progress("writing photos, slips and recordings");
    let written = write_files(media_root, seed, school.files()).await?;
    let sheet = school.recordings(&written.recordings);
    rows.push((sheet.table, sheet.copy(&transaction).await.map_err(broken)?));
    transaction.commit().await.map_err(broken)?;
    client.batch_execute("analyze").await.map_err(broken)?;
    progress(&format!(
        "{} files, {} MB",
        written.files,
        written.bytes / 1_000_000
    ));
    drop(client);
    // The connection ends with its client; what it says then changes nothing.
    connection.await.ok();
    Ok(SchoolCounts {
        rows,
        files: written.files,
        file_bytes: written.bytes,
    })
}
