//! What a site's database has: its tables with their sizes, and the columns that name files.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::media::MediaRoot;
use crate::source::complete::{self, SiteTable};
use crate::source::quote_name;
use crate::sql_template::statement;

/// A table of the site, and what is known of it.
pub(super) struct SurveyedTable {
    pub(super) table: SiteTable,
    /// The role that owns it.
    pub(super) owner: String,
    pub(super) is_owned_by_superuser: bool,
    /// The planner's estimate.
    pub(super) rows: i64,
    /// With its indexes.
    pub(super) bytes: i64,
    /// Columns with a date or a time by which a retention can be measured.
    pub(super) times: Vec<String>,
    /// Columns that name files below the media root.
    pub(super) files: Vec<FoundFileColumn>,
}

/// A column that names files.
pub(super) struct FoundFileColumn {
    pub(super) column: String,
    /// Whether it holds JSON arrays of paths.
    pub(super) many: bool,
}

/// Looks at every table of the site.
///
/// # Errors
/// The source's.
pub(super) async fn survey(client: &Client, root: &MediaRoot) -> Result<Vec<SurveyedTable>> {
    let tables = complete::site_tables(client).await?;
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = client
        .query(statement!("tables", "survey"), &[&oids])
        .await
        .map_err(|error| Error::postgres("look at the site's tables", error))?;
    let mut found: HashMap<u32, _> = rows.iter().map(|row| (row.get::<_, u32>(0), row)).collect();
    let mut surveyed = Vec::with_capacity(tables.len());
    for table in tables {
        // It was dropped in the meantime.
        let Some(row) = found.remove(&table.oid) else {
            continue;
        };
        let texts: Vec<String> = row.get(5);
        let mut files = Vec::new();
        for column in texts.into_iter().filter(|column| may_name_files(column)) {
            files.extend(named_files(client, root, &table, column).await?);
        }
        surveyed.push(SurveyedTable {
            owner: row.get(1),
            is_owned_by_superuser: row.get(6),
            rows: row.get(2),
            bytes: row.get(3),
            times: row.get(4),
            files,
            table,
        });
    }
    Ok(surveyed)
}

/// Parts of names of columns that may name files.
const FILE_WORDS: [&str; 22] = [
    "image",
    "photo",
    "picture",
    "file",
    "path",
    "video",
    "audio",
    "document",
    "slip",
    "attachment",
    "avatar",
    "scan",
    "record",
    "media",
    "thumb",
    "logo",
    "cover",
    "pdf",
    "portrait",
    "signature",
    "snapshot",
    "upload",
];

fn may_name_files(column: &str) -> bool {
    let column = column.to_lowercase();
    FILE_WORDS.iter().any(|word| column.contains(word))
}

/// Whether values of the column are paths of files that are there.
async fn named_files(
    client: &Client,
    root: &MediaRoot,
    table: &SiteTable,
    column: String,
) -> Result<Option<FoundFileColumn>> {
    let sql = format!(
        "select {0}::text from {1} where {0} is not null limit 50",
        quote_name(&column),
        format_args!("{}.{}", quote_name(&table.schema), quote_name(&table.name))
    );
    let rows = match client.query(&sql, &[]).await {
        Ok(rows) => rows,
        // It may not be read: `init` will say so.
        Err(error) if error.as_db_error().is_some() => return Ok(None),
        Err(error) => return Err(Error::postgres(format!("look at {}", table.full_name()), error)),
    };
    let values: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let root = root.clone();
    let look = move || {
        values.iter().find_map(|value| {
            let list = serde_json::from_str::<Vec<String>>(value).ok();
            let many = list.is_some();
            let paths = list.unwrap_or_else(|| vec![value.clone()]);
            paths.iter().any(|path| root.has(path)).then_some(many)
        })
    };
    let many = tokio::task::spawn_blocking(look)
        .await
        .map_err(|error| Error::local("look for files", std::io::Error::other(error)))?;
    Ok(many.map(|many| FoundFileColumn { column, many }))
}
