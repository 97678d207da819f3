//! Compares a site with its cloud: each row within its entity's retention, and each file that such a row
//! names.
//!
//! Both servers format a row as canonical `jsonb` text in UTC. The text has the site's columns, without those
//! that are excluded or redacted; a column that goes as text has the text of its JSON. Rows are matched by
//! key, files by content hash. The site must not change during the comparison, and the cloud must have
//! accepted all its changes. Rows are streamed: only the key, the hash and the files' names of each row of
//! the site are in memory. Connections are without TLS, since both servers are on this machine. If a database
//! or a file cannot be read, there is an error and no report.

use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use comfy_table::{Cell, CellAlignment, Table, presets};
use futures::TryStreamExt;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio_postgres::{Client, NoTls};

use crate::catalogue::{Catalogue, Entity, FileColumn};
use crate::error::{Error, Kind, Result};
use crate::source::quote_text;

/// Settings for both sessions, so that equal values have equal text.
const TEXT_FORMAT: &str = "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; \
                              set bytea_output = 'hex'; set extra_float_digits = 1";

/// The comparison of a site with its cloud, by entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EqualityReport {
    /// The site's name in the cloud.
    pub site: String,
    /// Whether the cloud has every row and every file, and all are equal.
    pub equal: bool,
    /// In the catalogue's order.
    pub entities: Vec<EntityEquality>,
}

/// One entity's rows and files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EntityEquality {
    /// The entity's name.
    pub entity: String,
    /// Rows of the site within the entity's retention.
    pub in_retention: u64,
    /// Of those, rows that the cloud has.
    pub in_cloud: u64,
    /// Of those, rows that the cloud has with equal values.
    pub equal: u64,
    /// All rows of the site in the cloud, also those beyond the retention.
    pub cloud_rows: u64,
    /// Columns of the site that the cloud's table does not have. If there are any, no row is equal.
    pub columns_missing: Vec<String>,
    /// Files that rows within the retention name.
    pub files: u64,
    /// Of those, files that are missing on the site itself.
    pub files_absent: u64,
    /// Bytes of those files on the site.
    pub file_bytes: u64,
    /// Of those files, those that the cloud has at the row's URL with equal content.
    pub files_verified: u64,
}

impl EntityEquality {
    /// Whether the cloud has every row within the retention and every file that it names, and all are equal.
    pub fn is_equal(&self) -> bool {
        self.equal == self.in_retention && self.files_verified == self.files
    }
}

/// Compares a site's database and media root with the receiver's database and files.
///
/// # Errors
/// A database cannot be reached or returns an error, or a file that exists cannot be read.
pub async fn compare(
    site_db_url: &str,
    cloud_db_url: &str,
    catalogue: &Catalogue,
    media_root: &Path,
    receiver_files: &Path,
    site_name: &str,
) -> Result<EqualityReport> {
    let site = connect(site_db_url).await?;
    let cloud = connect(cloud_db_url).await?;
    let mut entities = Vec::with_capacity(catalogue.entities().len());
    for entity in catalogue.entities() {
        let compared = Comparison::new(entity, &site, &cloud, site_name)
            .compare_rows()
            .await;
        let (mut found, files) =
            compared.map_err(|error| Error::postgres(format!("compare {}", entity.name), error))?;
        let (root, stored) = (media_root.to_owned(), receiver_files.to_owned());
        let verified = tokio::task::spawn_blocking(move || {
            verify_files(&files, &root, &stored, &mut found)?;
            Ok::<_, Error>(found)
        });
        entities.push(verified.await.map_err(|error| {
            Error::new(Kind::Local, "compare files", error.to_string()).caused_by(error)
        })??);
    }
    Ok(EqualityReport {
        site: site_name.to_owned(),
        equal: entities.iter().all(EntityEquality::is_equal),
        entities,
    })
}

async fn connect(url: &str) -> Result<Client> {
    let postgres_error = |error| Error::postgres("connect to compare site and cloud", error);
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .map_err(postgres_error)?;
    // The connection ends when the client is dropped. The client's next query returns an error of it.
    tokio::spawn(connection);
    client.batch_execute(TEXT_FORMAT).await.map_err(postgres_error)?;
    Ok(client)
}

/// A file that a row names: its path on the site, and its URL in the cloud's row.
struct FileOfRow {
    path: String,
    url: Option<String>,
}

struct SiteRow {
    hash: blake3::Hash,
    /// The paths that the row names, by file column.
    paths: Vec<Vec<String>>,
}

struct Comparison<'a> {
    entity: &'a Entity,
    site: &'a Client,
    cloud: &'a Client,
    site_name: &'a str,
}

impl<'a> Comparison<'a> {
    fn new(entity: &'a Entity, site: &'a Client, cloud: &'a Client, site_name: &'a str) -> Self {
        Self {
            entity,
            site,
            cloud,
            site_name,
        }
    }

    async fn compare_rows(
        &self,
    ) -> std::result::Result<(EntityEquality, Vec<FileOfRow>), tokio_postgres::Error> {
        let entity = self.entity;
        let mut found = EntityEquality {
            entity: entity.name.clone(),
            ..EntityEquality::default()
        };
        let compared: Vec<String> = columns(self.site, &entity.table)
            .await?
            .into_iter()
            .filter(|column| !entity.exclude.contains(column) && !entity.redact.contains(column))
            .collect();
        let mut rows = self.site_rows(&compared).await?;
        found.in_retention = rows.len() as u64;

        let table = format!("cloud.{}", quoted(&entity.name));
        let cloud_columns = columns(self.cloud, &table).await?;
        let mut files = Vec::new();
        if !cloud_columns.is_empty() {
            found.columns_missing = compared
                .iter()
                .filter(|column| !cloud_columns.contains(column))
                .cloned()
                .collect();
            self.match_cloud(
                &table,
                &cloud_columns,
                &compared,
                &mut rows,
                &mut found,
                &mut files,
            )
            .await?;
        }
        // The cloud does not have the remaining rows.
        for path in rows.into_values().flat_map(|row| row.paths).flatten() {
            files.push(FileOfRow { path, url: None });
        }
        Ok((found, files))
    }

    async fn site_rows(
        &self,
        compared: &[String],
    ) -> std::result::Result<HashMap<Box<str>, SiteRow>, tokio_postgres::Error> {
        let entity = self.entity;
        let all = columns(self.site, &entity.table).await?;
        let ignored = other_columns(&all, compared);
        let mut conditions = Vec::new();
        if let Some(window) = &entity.retention {
            let column = quoted(&window.column);
            conditions.push(format!(
                "t.{column} >= now() - make_interval(days => {})",
                window.days
            ));
        }
        conditions.extend(entity.filter.iter().map(|filter| format!("({filter})")));
        let as_text: String = compared
            .iter()
            .filter(|column| entity.is_sent_as_text(column))
            .map(|column| {
                let (name, value) = (quote_text(column), quoted(column));
                format!(" || jsonb_build_object({name}::text, to_json(t.{value}) #>> '{{}}')")
            })
            .collect();
        let mut statement = format!(
            "select {}, (to_jsonb(t.*) - $1::text[]{as_text})::text{} from {} as t",
            key_text(entity),
            text_columns(entity.files.iter().map(|file| file.column.as_str())),
            entity.table,
        );
        if !conditions.is_empty() {
            statement += &format!(" where {}", conditions.join(" and "));
        }
        let stream = self.site.query_raw(&statement, [ignored]).await?;
        let mut stream = std::pin::pin!(stream);
        let mut rows = HashMap::new();
        while let Some(row) = stream.try_next().await? {
            let paths = (entity.files.iter().enumerate())
                .map(|(index, file)| names_in(file, row.get(2 + index)))
                .collect();
            let hash = blake3::hash(row.get::<_, &str>(1).as_bytes());
            rows.insert(row.get::<_, &str>(0).into(), SiteRow { hash, paths });
        }
        Ok(rows)
    }

    /// Compares the cloud's rows with the site's and removes those that the cloud has from `rows`.
    async fn match_cloud(
        &self,
        table: &str,
        cloud_columns: &[String],
        compared: &[String],
        rows: &mut HashMap<Box<str>, SiteRow>,
        found: &mut EntityEquality,
        files: &mut Vec<FileOfRow>,
    ) -> std::result::Result<(), tokio_postgres::Error> {
        let entity = self.entity;
        // A table may have no column for a file's URL before its first file.
        let urls = entity.files.iter().map(|file| {
            if cloud_columns.contains(&file.url_column) {
                file.url_column.as_str()
            } else {
                ""
            }
        });
        let statement = format!(
            "select {}, (to_jsonb(t.*) - $1::text[])::text{} from {table} as t where t._site = $2",
            key_text(entity),
            text_columns(urls),
        );
        let ignored = other_columns(cloud_columns, compared);
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&ignored, &self.site_name];
        let stream = self.cloud.query_raw(&statement, values).await?;
        let mut stream = std::pin::pin!(stream);
        while let Some(row) = stream.try_next().await? {
            found.cloud_rows += 1;
            let Some(site) = rows.remove(row.get::<_, &str>(0)) else {
                continue;
            };
            found.in_cloud += 1;
            if blake3::hash(row.get::<_, &str>(1).as_bytes()) == site.hash {
                found.equal += 1;
            }
            for ((index, file), paths) in entity.files.iter().enumerate().zip(site.paths) {
                let mut urls = names_in(file, row.get(2 + index)).into_iter();
                for path in paths {
                    files.push(FileOfRow {
                        path,
                        url: urls.next(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The table's columns, in order. Empty if the table does not exist.
async fn columns(client: &Client, table: &str) -> std::result::Result<Vec<String>, tokio_postgres::Error> {
    let statement = "select attname::text from pg_attribute \
                     where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attnum";
    let rows = client.query(statement, &[&table]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The columns that are not compared.
fn other_columns(all: &[String], compared: &[String]) -> Vec<String> {
    all.iter()
        .filter(|column| !compared.contains(column))
        .cloned()
        .collect()
}

/// An expression for the row's key as text, which is the same on both servers.
fn key_text(entity: &Entity) -> String {
    let columns: Vec<String> = entity
        .key
        .iter()
        .map(|column| format!("t.{}", quoted(column)))
        .collect();
    format!("jsonb_build_array({})::text", columns.join(", "))
}

/// Further columns of a `select`, as text. An empty name gives a null.
fn text_columns<'a>(columns: impl Iterator<Item = &'a str>) -> String {
    columns
        .map(|column| match column {
            "" => ", null::text".to_owned(),
            column => format!(", t.{}::text", quoted(column)),
        })
        .collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The paths or URLs in a column's value.
fn names_in(file: &FileColumn, value: Option<&str>) -> Vec<String> {
    match value {
        None | Some("") => Vec::new(),
        Some(text) if file.many => serde_json::from_str(text).unwrap_or_default(),
        Some(text) => vec![text.to_owned()],
    }
}

/// Compares each file with the cloud's file at its URL.
fn verify_files(files: &[FileOfRow], root: &Path, stored: &Path, found: &mut EntityEquality) -> Result<()> {
    for file in files {
        found.files += 1;
        let Some((hash, bytes)) = join_below(root, &file.path).map_or(Ok(None), |path| hash_file(&path))?
        else {
            found.files_absent += 1;
            continue;
        };
        found.file_bytes += bytes;
        let copy = file.url.as_deref().and_then(|url| stored_path(stored, url));
        let copy = copy.map_or(Ok(None), |path| hash_file(&path))?;
        if copy.is_some_and(|(copied, _)| copied == hash) {
            found.files_verified += 1;
        }
    }
    Ok(())
}

/// The path below a folder. `None` if it leads out of the folder.
fn join_below(folder: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let is_below = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    is_below.then(|| folder.join(path))
}

/// The path of the file that the receiver serves as `…/media/<site>/<directory>/<name>`.
fn stored_path(stored: &Path, url: &str) -> Option<PathBuf> {
    let path = match url::Url::parse(url) {
        Ok(url) => url.path().to_owned(),
        Err(_) => url.to_owned(),
    };
    let mut parts = path.rsplitn(4, '/');
    let (name, directory, site) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().filter(|before| before.ends_with("media"))?;
    let tail = format!("{site}/{directory}/{name}");
    join_below(stored, &percent_decode_str(&tail).decode_utf8().ok()?)
}

/// A file's hash and size. `None` if the file does not exist.
fn hash_file(path: &Path) -> Result<Option<(blake3::Hash, u64)>> {
    let read_error = |error| Error::local(format!("read {}", path.display()), error);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read_error(error)),
    };
    let bytes = file.metadata().map_err(read_error)?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(read_error)?;
    Ok(Some((hasher.finalize(), bytes)))
}

impl fmt::Display for EqualityReport {
    /// Writes a table: rows and files of each entity, and their sums.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header([
            "entity",
            "in retention",
            "in the cloud",
            "equal",
            "files",
            "bytes",
            "verified",
        ]);
        let mut sums = [0; 6];
        for entity in &self.entities {
            let numbers = [
                entity.in_retention,
                entity.in_cloud,
                entity.equal,
                entity.files,
                entity.file_bytes,
                entity.files_verified,
            ];
            for (sum, number) in sums.iter_mut().zip(numbers) {
                *sum += number;
            }
            table.add_row(table_row(&entity.entity, numbers, entity.files > 0));
        }
        table.add_row(table_row("all", sums, true));
        write!(f, "{table}")
    }
}

/// A row of the table. The columns for files are empty if the entity has no files.
fn table_row(name: &str, numbers: [u64; 6], has_files: bool) -> Vec<Cell> {
    let cells = numbers.iter().enumerate().map(|(index, number)| {
        let text = if index < 3 || has_files {
            number.to_string()
        } else {
            String::new()
        };
        Cell::new(text).set_alignment(CellAlignment::Right)
    });
    std::iter::once(Cell::new(name)).chain(cells).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_the_path_of_the_receivers_file() {
        let stored = Path::new("/files");
        for (url, path) in [
            (
                "https://cloud.example/api/media/college/passes/a.jpg",
                Some("/files/college/passes/a.jpg"),
            ),
            (
                "/media/college/passes/a%20b+c.jpg",
                Some("/files/college/passes/a b+c.jpg"),
            ),
            (
                "http://127.0.0.1:1/media/college/x/%C3%B1.jpg?v=1",
                Some("/files/college/x/ñ.jpg"),
            ),
            ("https://cloud.example/media/..%2f..%2fetc/passwd", None),
            ("https://cloud.example/elsewhere/a.jpg", None),
        ] {
            assert_eq!(stored_path(stored, url), path.map(PathBuf::from), "{url}");
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_entity_and_one_for_all() {
        let equality = |name: &str, rows, files| EntityEquality {
            entity: name.to_owned(),
            in_retention: rows,
            in_cloud: rows,
            equal: rows,
            files,
            files_verified: files,
            ..EntityEquality::default()
        };
        let report = EqualityReport {
            site: "college".to_owned(),
            equal: true,
            entities: vec![equality("rooms", 40, 0), equality("leaves", 120, 119)],
        };
        let text = report.to_string();
        for word in ["rooms", "leaves", "160", "119"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
