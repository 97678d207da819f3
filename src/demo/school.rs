//! Creates the sample school: the rows of nine tables, and the media files that they name.
//!
//! The same seed gives the same school; times count back from the hour in which it is created. In each table
//! with a retention, many rows are younger than the retention and many are older. Rows are written by COPY in
//! one transaction, which commits after every file is written: if anything fails, the database stays empty.

use std::path::Path;

use serde::Serialize;
use tokio_postgres::NoTls;

use super::media_files::write_files;
use super::rows::School;
pub use super::school_size::SchoolSize;
use crate::error::{Error, Result};

const SCHEMA: &str = include_str!("../../sql/sample_school.sql");

/// How many rows and files a school has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SchoolCounts {
    /// Rows by table, in the catalogue's order.
    pub rows: Vec<(&'static str, u64)>,
    /// Media files.
    pub files: u64,
    /// Bytes of the media files.
    pub file_bytes: u64,
}

/// Creates the sample school of [`SchoolSize::full`] in an empty database and below a media root.
///
/// # Errors
/// As [`create_with_size`].
pub async fn create(
    database_url: &str,
    media_root: &Path,
    seed: u64,
    progress: impl Fn(&str),
) -> Result<SchoolCounts> {
    create_with_size(&SchoolSize::full(), database_url, media_root, seed, progress).await
}

/// Creates a sample school of this size.
///
/// # Errors
/// The database cannot be reached or has such tables already, or a file cannot be written. The database then
/// stays empty.
pub async fn create_with_size(
    size: &SchoolSize,
    database_url: &str,
    media_root: &Path,
    seed: u64,
    progress: impl Fn(&str),
) -> Result<SchoolCounts> {
    let postgres_error = |error| Error::postgres("create the sample school", error);
    let (mut client, connection) = tokio_postgres::connect(database_url, NoTls)
        .await
        .map_err(postgres_error)?;
    let connection = tokio::spawn(connection);
    let school = School::new(size.clone(), seed);

    let transaction = client.transaction().await.map_err(postgres_error)?;
    transaction
        .batch_execute(SCHEMA)
        .await
        .map_err(|error| postgres_error(error).remedy("give the sample school an empty database"))?;
    let mut rows = Vec::new();
    for table in school.tables() {
        progress(&format!("{}: {} rows", table.name, table.rows));
        rows.push((
            table.name,
            table.copy(&transaction).await.map_err(postgres_error)?,
        ));
    }
    progress("writing photos, slips and recordings");
    let written = write_files(media_root, seed, school.files()).await?;
    let table = School::recordings(&written.recordings);
    rows.push((
        table.name,
        table.copy(&transaction).await.map_err(postgres_error)?,
    ));
    transaction.commit().await.map_err(postgres_error)?;
    client.batch_execute("analyze").await.map_err(postgres_error)?;
    progress(&format!(
        "{} files, {} MB",
        written.files,
        written.bytes / 1_000_000
    ));
    drop(client);
    // The connection ends with its client. Everything is committed: an error of it changes nothing.
    connection.await.ok();
    Ok(SchoolCounts {
        rows,
        files: written.files,
        file_bytes: written.bytes,
    })
}
