//! Adds URLs to rows before they are sent, and notes which rows name which files.
//!
//! A row that has files always has the URL column, with null until the file is uploaded: so a row has the
//! same columns whether it is delivered or compared. If the URL column is the file column itself, it has the
//! site's own value until then.

use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap};
use tokio_postgres::Client;

use super::paths;
use super::root::MediaRoot;
use crate::batch::{Batch, ChangeIndex, Fate};
use crate::catalogue::server::{ColumnValue, Unconfirmed};
use crate::catalogue::{Catalogue, Entity, EntityIndex};
use crate::change::{NamedFile, Op};
use crate::error::{Error, Kind, Result};
use crate::source::file_records::{self, FileAddress, NamedFiles, NamingRows};
use crate::wire::json::pick;

type RowUrls = HashMap<String, FileAddress>;

/// What the rows of a delivered batch name.
#[derive(Debug, Default)]
pub struct FileReferences {
    /// Whether a file is to be uploaded.
    pub wanted: bool,
    /// Rows whose file was uploaded after they were read, by entity and key: they were sent without its URL.
    pub outdated: Vec<(EntityIndex, String)>,
}

/// Adds to each row that has file columns the URLs of the files that are uploaded.
///
/// # Errors
/// The source's; a row that is no JSON object.
pub async fn attach_urls(
    client: &Client,
    root: &MediaRoot,
    catalogue: &Catalogue,
    batch: &mut Batch,
) -> Result<()> {
    if !has_files(catalogue, batch) {
        return Ok(());
    }
    let rows = rows_with_files(catalogue, batch, |_| true)?;
    let urls = file_records::addresses(client, &recorded_paths(root, &rows)).await?;
    for NamedRow { change_index, named } in rows {
        let change = &batch[change_index];
        let entity = &catalogue[change.entity];
        let Some(row) = &change.row else { continue };
        let row = with_urls(root, entity, row, &named, &urls)?;
        batch.changes_mut()[change_index.0].row = Some(row.into());
        if is_held(root, entity, &named, &urls) && *batch.fate(change_index) == Fate::Pending {
            batch.set_fate(change_index, Fate::Held);
        }
        if entity.files.iter().any(|file| file.url_column == file.column) {
            batch.note_named_files(change_index, named);
        }
    }
    Ok(())
}

/// A row and what its file columns name.
struct NamedRow {
    change_index: ChangeIndex,
    named: Vec<NamedFile>,
}

/// The batch's rows of entities with files, and what their columns name.
fn rows_with_files(
    catalogue: &Catalogue,
    batch: &Batch,
    wanted: impl Fn(&Fate) -> bool,
) -> Result<Vec<NamedRow>> {
    let mut rows = Vec::new();
    for (change_index, change) in batch.indexed() {
        let entity = &catalogue[change.entity];
        let Some(row) = change.row.as_deref().filter(|_| !entity.files.is_empty()) else {
            continue;
        };
        if wanted(batch.fate(change_index)) {
            let named = match batch.named_files(change_index) {
                Some(named) => named.to_vec(),
                None => columns(entity, row)?,
            };
            rows.push(NamedRow { change_index, named });
        }
    }
    Ok(rows)
}

/// Whether the row is held back until the cloud has one of its files.
fn is_held(root: &MediaRoot, entity: &Entity, named: &[NamedFile], urls: &RowUrls) -> bool {
    let mut files = entity.files.iter().zip(named);
    files.any(|(file, named)| {
        file.until_uploaded == Some(Unconfirmed::Hold)
            && named
                .paths
                .iter()
                .flatten()
                .any(|path| root.is_inside(path) && !urls.contains_key(&paths::recorded(&root.path, path)))
    })
}

/// Notes which files the batch's accepted rows name. Called once the cloud has accepted them, before the
/// checkpoint.
///
/// # Errors
/// The source's.
pub async fn note_references(
    client: &Client,
    root: &MediaRoot,
    catalogue: &Catalogue,
    batch: &Batch,
) -> Result<FileReferences> {
    let mut found = FileReferences::default();
    if !has_files(catalogue, batch) {
        return Ok(found);
    }
    let (mut files, mut naming) = (NamedFiles::default(), NamingRows::default());
    let mut purged: (Vec<&str>, Vec<&str>) = Default::default();
    for (change_index, change) in batch.indexed() {
        let entity = &catalogue[change.entity];
        if entity.files.is_empty() {
            continue;
        }
        if *batch.fate(change_index) == Fate::Kept {
            purged.0.push(entity.name.as_str());
            purged.1.push(&*change.key);
        }
        if !matches!(batch.fate(change_index), Fate::Accepted | Fate::Held) {
            continue;
        }
        if change.op == Op::Truncate {
            naming.truncated.push(entity.name.as_str());
        } else {
            naming.entities.push(entity.name.as_str());
            naming.keys.push(&*change.key);
        }
    }
    // A row that is held back names its file too.
    let rows = rows_with_files(catalogue, batch, |fate| {
        matches!(fate, Fate::Accepted | Fate::Held)
    })?;
    for NamedRow { change_index, named } in &rows {
        let change = &batch[*change_index];
        let entity = &catalogue[change.entity];
        for (file, named) in entity.files.iter().zip(named) {
            for path in named.paths.iter().flatten() {
                files.paths.push(paths::recorded(&root.path, path));
                files.directories.push(file.directory.as_str());
                files.entities.push(entity.name.as_str());
                files.keys.push(&*change.key);
            }
        }
    }
    if !files.paths.is_empty() {
        found.wanted = file_records::note_named(client, &files).await?;
    }
    file_records::note_references(client, &naming, &files).await?;
    if !purged.0.is_empty() {
        file_records::forget_purged(client, &purged.0, &purged.1).await?;
    }
    if files.paths.is_empty() {
        return Ok(found);
    }
    // An upload that is recorded from now on touches these rows again. One that is being recorded now may
    // have looked for them before they were noted: the query waits for its lock, and finds what it recorded.
    let urls = file_records::settled_addresses(client, &recorded_paths(root, &rows)).await?;
    for NamedRow { change_index, named } in &rows {
        let change = &batch[*change_index];
        let entity = &catalogue[change.entity];
        let held = *batch.fate(*change_index) == Fate::Held;
        if let Some(row) = &change.row
            && match held {
                true => !is_held(root, entity, named, &urls),
                false => is_outdated(root, entity, row, named, &urls)?,
            }
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
        .any(|change| !catalogue[change.entity].files.is_empty())
}

/// What each of the entity's file columns names.
fn columns(entity: &Entity, row: &str) -> Result<Vec<NamedFile>> {
    let names: Vec<&str> = entity.files.iter().map(|file| file.column.as_str()).collect();
    let values = pick(row, &names).map_err(|_| broken(entity))?;
    Ok(values.into_iter().map(paths::named).collect())
}

/// The files that the rows name, as their records have them.
fn recorded_paths(root: &MediaRoot, rows: &[NamedRow]) -> Vec<String> {
    let named = rows.iter().flat_map(|row| &row.named);
    let paths = named.flat_map(|named| named.paths.iter().flatten());
    paths.map(|path| paths::recorded(&root.path, path)).collect()
}

/// The JSON value of each of the entity's URL columns, as far as addresses are known.
fn url_values(
    root: &MediaRoot,
    entity: &Entity,
    row: &str,
    named: &[NamedFile],
    urls: &RowUrls,
) -> Result<Vec<String>> {
    let names: Vec<&str> = entity.files.iter().map(|file| file.column.as_str()).collect();
    let own = pick(row, &names).map_err(|_| broken(entity))?;
    let mut values = Vec::with_capacity(own.len());
    for ((file, named), own) in entity.files.iter().zip(named).zip(own) {
        let in_place = file.url_column == file.column;
        let known = |path: &Option<String>| {
            let path = path.as_ref()?;
            urls.get(&paths::recorded(&root.path, path))
        };
        let confirmed_value = |path: &Option<String>| -> Option<String> {
            match (known(path), file.column_value) {
                (Some(address), None | Some(ColumnValue::Url)) => Some(address.url.clone()),
                (Some(address), _) => Some(address.path.clone().unwrap_or_else(|| address.url.clone())),
                // The column keeps the site's own value.
                (None, _) => path.clone().filter(|_| in_place),
            }
        };
        if in_place && !named.paths.iter().any(|path| known(path).is_some()) {
            values.push(own.unwrap_or("null").to_owned());
            continue;
        }
        let list: Vec<Option<String>> = named.paths.iter().map(confirmed_value).collect();
        let value = match file.column_value {
            Some(ColumnValue::Json) => {
                serde_json::to_string(&list).and_then(|list| serde_json::to_string(&list))
            }
            _ if file.many || named.list => serde_json::to_string(&list),
            _ => serde_json::to_string(&list.first().cloned().flatten()),
        };
        values.push(value.map_err(|_| broken(entity))?);
    }
    Ok(values)
}

/// The row with its URL columns, which replace columns of the same name.
fn with_urls(
    root: &MediaRoot,
    entity: &Entity,
    row: &str,
    named: &[NamedFile],
    urls: &RowUrls,
) -> Result<String> {
    let values = url_values(root, entity, row, named, urls)?;
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
    for (file, value) in entity.files.iter().zip(values) {
        let name = serde_json::to_string(&file.url_column).map_err(|_| broken(entity))?;
        let comma = if text.trim_end().ends_with('{') { "" } else { "," };
        text.push_str(&format!("{comma}{name}:{value}"));
    }
    text.push('}');
    Ok(text)
}

/// Whether the row was sent without a URL that is known now.
fn is_outdated(
    root: &MediaRoot,
    entity: &Entity,
    row: &str,
    named: &[NamedFile],
    urls: &RowUrls,
) -> Result<bool> {
    // Only what is known now: a value that is the site's own is no other one.
    let now = url_values(root, entity, row, named, urls)?;
    let sent = url_columns(entity, row)?;
    Ok(sent
        .iter()
        .zip(&now)
        .any(|(sent, now)| *sent != Some(now.as_str())))
}

fn url_columns<'a>(entity: &Entity, row: &'a str) -> Result<Vec<Option<&'a str>>> {
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
        let leaves = &builtin[builtin.find("leaves").unwrap()];
        let root = &MediaRoot::new("/m");
        let row = "{\"leave_id\":1,\"leave_slip_image\":\"s.jpg\"}";
        let urls: RowUrls = [known("s.jpg", "http://c/s")].into();
        let named = columns(leaves, row).unwrap();
        let before = with_urls(root, leaves, row, &named, &RowUrls::new()).unwrap();
        let after = with_urls(root, leaves, row, &named, &urls).unwrap();
        assert!(is_outdated(root, leaves, &before, &named, &urls).unwrap());
        assert!(!is_outdated(root, leaves, &after, &named, &urls).unwrap());
        assert!(!is_outdated(root, leaves, &before, &named, &RowUrls::new()).unwrap());
    }

    fn known(path: &str, url: &str) -> (String, FileAddress) {
        let address = FileAddress {
            url: url.to_owned(),
            path: Some(format!("/storage/{path}")),
        };
        (path.to_owned(), address)
    }

    fn sent(entity: &Entity, row: &str, urls: &RowUrls) -> String {
        let named = columns(entity, row).unwrap();
        with_urls(&MediaRoot::new("/m"), entity, row, &named, urls).unwrap()
    }

    #[test]
    fn urls_are_added_in_the_order_of_paths() {
        let builtin = Catalogue::builtin();
        let of = |name: &str| &builtin[builtin.find(name).unwrap()];
        let urls: RowUrls = [known("a.jpg", "http://c/a"), known("s.jpg", "http://c/s")].into();
        for (entity, row, expected) in [
            (
                "faculties",
                r#"{"faculty_id":1,"faculty_images":"[\"b.jpg\",\"a.jpg\"]"}"#,
                r#"{"faculty_id":1,"faculty_images":"[\"b.jpg\",\"a.jpg\"]","cloud_image_urls":[null,"http://c/a"]}"#,
            ),
            (
                "leaves",
                r#"{"leave_id":1,"leave_slip_image":"./s.jpg","leave_slip_cloud_url":"old"}"#,
                r#"{"leave_id":1,"leave_slip_image":"./s.jpg","leave_slip_cloud_url":"http://c/s"}"#,
            ),
            (
                "leaves",
                r#"{"leave_id":1,"leave_slip_image":null}"#,
                r#"{"leave_id":1,"leave_slip_image":null,"leave_slip_cloud_url":null}"#,
            ),
        ] {
            assert_eq!(sent(of(entity), row, &urls), expected);
        }
    }

    #[test]
    fn the_file_column_itself_has_the_address_once_it_is_known() {
        let mut entity = Entity::new("x", "t", &["id"]);
        let mut file = Catalogue::builtin().entities()[2].files[0].clone();
        (file.column, file.url_column, file.many) = ("f".into(), "f".into(), false);
        let mut expect = |value, row: &str, urls: &RowUrls, expected: &str| {
            file.column_value = Some(value);
            entity.files = vec![file.clone()];
            assert_eq!(sent(&entity, row, urls), expected);
        };
        let urls: RowUrls = [known("a.jpg", "http://c/a")].into();
        let row = r#"{"f":"a.jpg"}"#;
        expect(ColumnValue::Path, row, &RowUrls::new(), row);
        expect(ColumnValue::Path, row, &urls, r#"{"f":"/storage/a.jpg"}"#);
        expect(ColumnValue::Url, row, &urls, r#"{"f":"http://c/a"}"#);
        expect(ColumnValue::Json, row, &urls, r#"{"f":"[\"/storage/a.jpg\"]"}"#);
        let two = r#"{"f":["b.jpg","a.jpg"]}"#;
        expect(
            ColumnValue::Path,
            two,
            &urls,
            r#"{"f":["b.jpg","/storage/a.jpg"]}"#,
        );
        expect(
            ColumnValue::Json,
            two,
            &urls,
            r#"{"f":"[\"b.jpg\",\"/storage/a.jpg\"]"}"#,
        );
    }
}
