//! Adds URLs to rows on their way, and notes which rows name which files.
//!
//! The URL column is always part of a row that has files, null where the file is not uploaded, so that a row reads the
//! same whether it is delivered or compared.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::value::RawValue;
use tokio_postgres::Client;

use super::paths::{self, Named};
use crate::batch::{Batch, Fate};
use crate::catalogue::{Catalogue, Entity, FileColumn};
use crate::change::Change;
use crate::error::{Error, Kind, Result};
use crate::fields::pick;

type Urls = HashMap<String, String>;

const URLS: &str = "select path, url from cloud_sync.media where path = any($1) and url is not null";

/// The same, once whoever writes one of these files down has ended.
const URLS_SETTLED: &str =
    "select path, url from cloud_sync.media where path = any($1) order by path for share";

/// What a delivered batch said about files.
#[derive(Debug, Default)]
pub struct References {
    /// Whether a file is to be uploaded.
    pub wanted: bool,
    /// Rows whose file was uploaded while they were on their way, as place and key: they lack its URL.
    pub outdated: Vec<(usize, String)>,
}

/// Adds to each row that has file columns the URLs of the files that are uploaded.
///
/// # Errors
/// The source's; a row that is no JSON object.
pub async fn attach_urls(
    client: &Client,
    root: &Path,
    catalogue: &Catalogue,
    batch: &mut Batch,
) -> Result<()> {
    if !has_files(catalogue, batch) {
        return Ok(());
    }
    let urls = known_urls(client, root, catalogue, batch.changes(), URLS).await?;
    for change in batch.changes_mut() {
        let entity = &catalogue.entities()[change.entity];
        if let Some(row) = &change.row
            && !entity.files.is_empty()
        {
            change.row = Some(with_urls(root, entity, row, &urls)?.into());
        }
    }
    Ok(())
}

/// Notes which files the batch's accepted rows name. Called once the cloud has accepted them, before the checkpoint.
///
/// # Errors
/// The source's.
pub async fn note_references(
    client: &Client,
    root: &Path,
    catalogue: &Catalogue,
    batch: &Batch,
) -> Result<References> {
    let mut found = References::default();
    if !has_files(catalogue, batch) {
        return Ok(found);
    }
    let (mut all, mut directories) = (Vec::new(), Vec::new());
    let (mut entities, mut keys) = (Vec::new(), Vec::new());
    let mut accepted = Vec::new();
    for (nth, change) in batch.changes().iter().enumerate() {
        let entity = &catalogue.entities()[change.entity];
        if *batch.fate(nth) != Fate::Accepted || entity.files.is_empty() {
            continue;
        }
        let Some(row) = &change.row else { continue };
        accepted.push(change);
        for (file, named) in entity.files.iter().zip(columns(entity, row)?) {
            for path in named.paths.into_iter().flatten() {
                all.push(paths::recorded(root, path));
                directories.push(file.directory.as_str());
                entities.push(entity.name.as_str());
                keys.push(&*change.key);
            }
        }
    }
    if all.is_empty() {
        return Ok(found);
    }
    let row = client
        .query_one(
            "with named as (select * from unnest($1::text[], $2::text[], $3::text[], $4::text[]) n (path, directory, entity, key)), \
             fresh as (insert into cloud_sync.media (path, directory) \
                       select distinct on (path) path, directory from named on conflict do nothing returning 1) \
             select count(*) from fresh",
            &[&all, &directories, &entities, &keys],
        )
        .await
        .map_err(|error| Error::postgres("note the files that rows name", error))?;
    found.wanted = row.get::<_, i64>(0) > 0;
    client
        .execute(
            "insert into cloud_sync.media_ref (path, entity, key) \
             select distinct path, entity, key from unnest($1::text[], $2::text[], $3::text[]) n (path, entity, key) \
             on conflict do nothing",
            &[&all, &entities, &keys],
        )
        .await
        .map_err(|error| Error::postgres("note the rows that name files", error))?;
    // From here on an upload touches these rows again. One that is being written down at this moment may have looked for
    // them before they were noted: the lock waits for it, and what it wrote is made up for.
    let urls = known_urls(client, root, catalogue, accepted.iter().copied(), URLS_SETTLED).await?;
    for change in accepted {
        let entity = &catalogue.entities()[change.entity];
        if let Some(row) = &change.row
            && is_outdated(root, entity, row, &urls)?
        {
            found.outdated.push((change.entity, change.key.to_string()));
        }
    }
    Ok(found)
}

fn has_files(catalogue: &Catalogue, batch: &Batch) -> bool {
    batch
        .changes()
        .iter()
        .any(|change| !catalogue.entities()[change.entity].files.is_empty())
}

/// What each of the entity's file columns names.
fn columns(entity: &Entity, row: &str) -> Result<Vec<Named>> {
    let names: Vec<&str> = entity.files.iter().map(|file| file.column.as_str()).collect();
    let values = pick(row, &names).map_err(|_| broken(entity))?;
    Ok(values.into_iter().map(paths::named).collect())
}

async fn known_urls<'a>(
    client: &Client,
    root: &Path,
    catalogue: &Catalogue,
    changes: impl IntoIterator<Item = &'a Change>,
    query: &str,
) -> Result<Urls> {
    let mut all = Vec::new();
    for change in changes {
        let entity = &catalogue.entities()[change.entity];
        if let (Some(row), false) = (&change.row, entity.files.is_empty()) {
            for named in columns(entity, row)? {
                all.extend(
                    named
                        .paths
                        .into_iter()
                        .flatten()
                        .filter_map(|path| paths::below(root, &path).ok()),
                );
            }
        }
    }
    if all.is_empty() {
        return Ok(Urls::new());
    }
    let rows = client
        .query(query, &[&all])
        .await
        .map_err(|error| Error::postgres("read the URLs of media files", error))?;
    Ok(rows
        .iter()
        .filter_map(|row| Some((row.get(0), row.get::<_, Option<String>>(1)?)))
        .collect())
}

/// The JSON value of each of the entity's URL columns, as far as URLs are known.
fn url_values(root: &Path, entity: &Entity, row: &str, urls: &Urls) -> Result<Vec<String>> {
    let url = |path: &Option<String>| {
        path.as_ref()
            .and_then(|path| paths::below(root, path).ok())
            .and_then(|path| urls.get(&path))
    };
    let value = |file: &FileColumn, named: &Named| {
        if file.many || named.list {
            serde_json::to_string(&named.paths.iter().map(url).collect::<Vec<_>>())
        } else {
            serde_json::to_string(&named.paths.first().and_then(url))
        }
    };
    entity
        .files
        .iter()
        .zip(&columns(entity, row)?)
        .map(|(file, named)| value(file, named).map_err(|_| broken(entity)))
        .collect()
}

/// The row with its URL columns, which take the place of columns of the same name.
fn with_urls(root: &Path, entity: &Entity, row: &str, urls: &Urls) -> Result<String> {
    let mut text = if url_columns(entity, row)?.iter().any(Option::is_some) {
        let mut fields: BTreeMap<String, &RawValue> =
            serde_json::from_str(row).map_err(|_| broken(entity))?;
        fields.retain(|name, _| entity.files.iter().all(|file| file.url_column != *name));
        serde_json::to_string(&fields).map_err(|_| broken(entity))?
    } else {
        row.trim_end().to_owned()
    };
    if text.pop() != Some('}') {
        return Err(broken(entity));
    }
    for (file, value) in entity.files.iter().zip(url_values(root, entity, row, urls)?) {
        let name = serde_json::to_string(&file.url_column).map_err(|_| broken(entity))?;
        text.push_str(&format!(",{name}:{value}"));
    }
    text.push('}');
    Ok(text)
}

/// Whether the row was delivered without a URL that is known now.
fn is_outdated(root: &Path, entity: &Entity, row: &str, urls: &Urls) -> Result<bool> {
    let now = url_values(root, entity, row, urls)?;
    let sent = url_columns(entity, row)?;
    Ok(sent
        .iter()
        .zip(&now)
        .any(|(sent, now)| sent.map(RawValue::get) != Some(now)))
}

fn url_columns<'a>(entity: &Entity, row: &'a str) -> Result<Vec<Option<&'a RawValue>>> {
    let names: Vec<&str> = entity.files.iter().map(|file| file.url_column.as_str()).collect();
    pick(row, &names).map_err(|_| broken(entity))
}

fn broken(entity: &Entity) -> Error {
    Error::new(
        Kind::Source,
        format!("read the files of {}", entity.name),
        "a row is no JSON object",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_outdated_only_where_a_url_became_known_since() {
        let builtin = Catalogue::builtin();
        let leaves = &builtin.entities()[builtin.find("leaves").unwrap()];
        let root = Path::new("/m");
        let row = "{\"leave_id\":1,\"leave_slip_image\":\"s.jpg\"}";
        let urls: Urls = [("s.jpg".to_owned(), "http://c/s".to_owned())].into();
        let before = with_urls(root, leaves, row, &Urls::new()).unwrap();
        let after = with_urls(root, leaves, row, &urls).unwrap();
        assert!(is_outdated(root, leaves, &before, &urls).unwrap());
        assert!(!is_outdated(root, leaves, &after, &urls).unwrap());
        assert!(!is_outdated(root, leaves, &before, &Urls::new()).unwrap());
    }

    #[test]
    fn urls_are_added_in_the_order_of_paths() {
        let builtin = Catalogue::builtin();
        let of = |name: &str| &builtin.entities()[builtin.find(name).unwrap()];
        let urls: Urls = [("a.jpg", "http://c/a"), ("s.jpg", "http://c/s")]
            .into_iter()
            .map(|(path, url)| (path.to_owned(), url.to_owned()))
            .collect();
        let root = Path::new("/m");
        assert_eq!(
            with_urls(
                root,
                of("faculties"),
                "{\"faculty_id\":1,\"faculty_images\":\"[\\\"b.jpg\\\",\\\"a.jpg\\\"]\"}",
                &urls
            )
            .unwrap(),
            "{\"faculty_id\":1,\"faculty_images\":\"[\\\"b.jpg\\\",\\\"a.jpg\\\"]\",\"cloud_image_urls\":[null,\"http://c/a\"]}"
        );
        assert_eq!(
            with_urls(
                root,
                of("leaves"),
                "{\"leave_id\":1,\"leave_slip_image\":\"./s.jpg\",\"leave_slip_cloud_url\":\"old\"}",
                &urls
            )
            .unwrap(),
            "{\"leave_id\":1,\"leave_slip_image\":\"./s.jpg\",\"leave_slip_cloud_url\":\"http://c/s\"}"
        );
        assert_eq!(
            with_urls(
                root,
                of("leaves"),
                "{\"leave_id\":1,\"leave_slip_image\":null}",
                &urls
            )
            .unwrap(),
            "{\"leave_id\":1,\"leave_slip_image\":null,\"leave_slip_cloud_url\":null}"
        );
    }
}
