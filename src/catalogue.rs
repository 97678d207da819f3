//! The catalogue: the ordered list of entities that are replicated, as data.
//!
//! The engine knows no table's name. What it replicates is a [`Catalogue`], either the built-in one of nine
//! entities ([`Catalogue::builtin`]) or the one that the configuration lists under `[[entity]]`. Order is
//! push order: parents come before their children. What always holds: a catalogue has been checked for all
//! that can be checked without a database ([`Catalogue::new`]). `source::describe` checks whether it fits a
//! database.

pub(crate) mod declared;
mod file_timing;
pub(crate) mod private_columns;
pub mod server;

use std::collections::{BTreeMap, HashSet};
use std::ops::Index;

use serde::{Deserialize, Serialize};

use crate::encryption::key_file::KeyFile;
use crate::error::{Error, Result};
use crate::weekly_times::WeeklyTimes;
use crate::wire::paths;
use file_timing::{DirectoryTimings, check_file_timing};
use server::{ColumnForm, ColumnValue, Unconfirmed, ValueForm};

pub use file_timing::FileAge;
pub(crate) use file_timing::FileTiming;

/// What happens in the cloud when a row is deleted on the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deletes {
    /// The row is deleted in the cloud too.
    Propagate,
    /// The cloud keeps the row: a site that purges its old rows must not empty the cloud.
    Keep,
}

/// Bounds backfill and sync to rows whose `column` is at most `days` old.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// A `timestamptz`, `timestamp` or `date` column of the table.
    pub column: String,
    /// Age in days.
    pub days: u32,
    /// The column by which the cloud's server counts the days of its lists, if that is not `column`.
    #[serde(default)]
    pub cloud_days_by: Option<String>,
}

/// A column that names media files, and the column for their cloud URLs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileColumn {
    /// The column with a path below the media root, or with a JSON array of such paths.
    pub column: String,
    /// The row's column in the cloud for the URL, or for the JSON array of URLs in the same order. It may be
    /// the file column itself if `column_value` is set.
    pub url_column: String,
    /// The upload directory: the last part of `POST /upload/{directory}`.
    pub directory: String,
    /// Whether the column holds a JSON array of paths.
    #[serde(default)]
    pub many: bool,
    /// What the URL column gets of the upload's answer; `None` means the URL.
    #[serde(default)]
    pub column_value: Option<ColumnValue>,
    /// What happens to a row whose file the cloud has not confirmed yet; `None` means that it is sent.
    #[serde(default)]
    pub until_uploaded: Option<Unconfirmed>,
    /// How long a file must not have changed before it goes; `None` means that it goes once it is finished.
    #[serde(default)]
    pub after: Option<FileAge>,
    /// When files go; `None` means always.
    #[serde(default)]
    pub when: Option<WeeklyTimes>,
}

/// One replicated kind of row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entity {
    /// The entity's name on the wire, in reports and in the receiver's schema. If the configuration leaves it
    /// out, it follows from the table's.
    #[serde(default)]
    pub name: String,
    /// The source table, with its schema if that is not on the search path: `tbl_room`, `"Annex"."Room"`.
    pub table: String,
    /// The key columns, in order: the primary key or a unique key without nulls. If the configuration leaves
    /// them out, they are those of the primary key, or of the shortest such unique key.
    #[serde(default)]
    pub key: Vec<String>,
    /// The resource path below the cloud's base URL. Defaults to the name with dashes.
    #[serde(default)]
    pub path: String,
    /// The retention; `None` means every row. The configuration also takes its old name, `window`.
    #[serde(default, alias = "window")]
    pub retention: Option<Retention>,
    /// Columns that are never read, and so never leave the site.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Columns that leave the site although their names look private.
    #[serde(default)]
    pub include: Vec<String>,
    /// Whether columns whose names look private never leave the site, unless `include` names them: those that
    /// come later, too.
    #[serde(default, skip_deserializing, skip_serializing_if = "std::ops::Not::not")]
    pub guarded: bool,
    /// Columns that are redacted before a row is sent: credentials in URLs, and values of excluded columns,
    /// are removed.
    #[serde(default)]
    pub redact: Vec<String>,
    /// Columns that are encrypted before a row is sent. In the cloud they are texts.
    #[serde(default)]
    pub encrypt: Vec<String>,
    /// The keys that encrypt; without them no row with such a column is sent.
    #[doc(hidden)]
    #[serde(skip)]
    pub keys: Option<KeyFile>,
    /// An SQL condition on the row, evaluated when the row is read. The cloud has only the rows that meet it.
    #[serde(default, rename = "where")]
    pub filter: Option<String>,
    /// What a delete does in the cloud. The default is `keep` if there is a retention, else `propagate`.
    #[serde(default)]
    pub deletes: Option<Deletes>,
    /// Columns that name media files.
    #[serde(default)]
    pub files: Vec<FileColumn>,
    /// The path of a delete, with `{key}` in it; only for a server without `changes`. `None` means
    /// `{path}/{key}`.
    #[serde(default)]
    pub delete_path: Option<String>,
    /// The path of a bulk request; only for a server without `changes`. `None` means `bulk/{path}`.
    #[serde(default)]
    pub bulk_path: Option<String>,
    /// Columns that have another name in the cloud; only for a server without `changes`.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
    /// Columns that the cloud wants in another form. Every server takes the form `text` of a column that is not
    /// in the key; what else is set here is only for a server without `changes`.
    #[serde(default)]
    pub columns: BTreeMap<String, ColumnForm>,
    /// Columns that every row has in the cloud with a fixed value; only for a server without `changes`.
    #[serde(default)]
    pub constants: BTreeMap<String, serde_json::Value>,
    /// Whether a comparison uses the cloud's list of the entity. If not, it uses this site's record of what
    /// the cloud has accepted. Only for a server without `changes`.
    #[serde(default = "default_true")]
    pub trust_list: bool,
}

fn default_true() -> bool {
    true
}

impl Entity {
    /// Makes an entity with a name, a table and its key, and defaults for everything else.
    pub fn new(name: &str, table: &str, key: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            table: table.to_owned(),
            key: key.iter().map(|&column| column.to_owned()).collect(),
            path: name.replace('_', "-"),
            retention: None,
            exclude: Vec::new(),
            include: Vec::new(),
            guarded: false,
            redact: Vec::new(),
            encrypt: Vec::new(),
            keys: None,
            filter: None,
            deletes: None,
            files: Vec::new(),
            delete_path: None,
            bulk_path: None,
            rename: BTreeMap::new(),
            columns: BTreeMap::new(),
            constants: BTreeMap::new(),
            trust_list: true,
        }
    }

    /// Whether a column of this name stays on the site.
    pub fn leaves_out(&self, column: &str) -> bool {
        self.exclude.iter().any(|excluded| excluded == column)
            || self.guarded && self.looks_private(column).is_some()
    }

    /// Whether a column is encrypted before it leaves the site.
    pub fn encrypts(&self, column: &str) -> bool {
        self.encrypt.iter().any(|encrypted| encrypted == column)
    }

    /// Why a column looks private that nothing names; `None` if it does not.
    pub(crate) fn looks_private(&self, column: &str) -> Option<&'static str> {
        let is_named = self.encrypts(column) || self.include.iter().any(|included| included == column);
        private_columns::looks_private(self.table_name(), column).filter(|_| !is_named)
    }

    /// The table's name without its schema and without quotes.
    fn table_name(&self) -> &str {
        match self.table.strip_suffix('"') {
            Some(quoted) => quoted.rsplit('"').next().unwrap_or_default(),
            None => self.table.rsplit('.').next().unwrap_or_default(),
        }
    }

    /// Whether every cloud gets this column as text.
    pub(crate) fn is_sent_as_text(&self, column: &str) -> bool {
        self.has_text_form(column) && !self.key.iter().any(|key| key == column)
    }

    /// A key column that the cloud wants as text.
    pub(crate) fn text_key(&self) -> Option<&str> {
        let mut key = self.key.iter().map(String::as_str);
        key.find(|column| self.has_text_form(column))
    }

    fn has_text_form(&self, column: &str) -> bool {
        let form = self.columns.get(column);
        form.is_some_and(|form| form.form == ValueForm::Text)
    }

    /// Whether a delete on the site deletes in the cloud.
    pub fn deletes(&self) -> Deletes {
        self.deletes.unwrap_or(if self.retention.is_some() {
            Deletes::Keep
        } else {
            Deletes::Propagate
        })
    }

    /// Bounds backfill and sync to rows of the last `days` days, by the column `created_at`.
    #[must_use]
    pub fn retention(mut self, days: u32) -> Self {
        self.retention = Some(Retention {
            column: "created_at".to_owned(),
            days,
            cloud_days_by: None,
        });
        self
    }

    /// Adds a file column: `column` holds a path below the media root, or a list of paths if `many`; the
    /// cloud's `url_column` gets the URLs; `directory` is the upload directory.
    #[must_use]
    pub fn file(mut self, column: &str, url_column: &str, directory: &str, many: bool) -> Self {
        self.files.push(FileColumn {
            column: column.to_owned(),
            url_column: url_column.to_owned(),
            directory: directory.to_owned(),
            many,
            column_value: None,
            until_uploaded: None,
            after: None,
            when: None,
        });
        self
    }
}

/// An entity's index in its catalogue, from 0, in push order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityIndex(pub usize);

/// The ordered list of entities, checked for all that can be checked without a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Catalogue {
    entities: Vec<Entity>,
}

impl Catalogue {
    /// Makes a catalogue of these entities, in this order.
    ///
    /// # Errors
    /// A configuration error that names the entity: an empty or repeated name or path, no key, an unsafe
    /// name, a key column that is excluded or redacted.
    pub fn new(mut entities: Vec<Entity>) -> Result<Self> {
        let faults = Self::faults(&mut entities);
        if faults.is_empty() {
            Ok(Self { entities })
        } else {
            Err(Error::all_of("use the catalogue", faults))
        }
    }

    /// A catalogue of entities without [faults](Self::faults).
    pub(crate) fn of_checked(entities: Vec<Entity>) -> Self {
        Self { entities }
    }

    /// What is wrong with these entities; at most one fault each. It gives those without a path the default
    /// one.
    pub(crate) fn faults(entities: &mut [Entity]) -> Vec<Error> {
        let mut names = HashSet::new();
        let mut paths = HashSet::new();
        let mut timings = DirectoryTimings::new();
        let mut faults = Vec::new();
        for entity in entities {
            if entity.path.is_empty() {
                entity.path = entity.name.replace('_', "-");
            }
            let is_new_name = names.insert(entity.name.clone());
            let is_new_path = paths.insert(entity.path.clone());
            let checked = check_entity(entity).and_then(|()| check_file_timing(entity, &mut timings));
            let fault = match checked {
                Err(fault) => fault,
                Ok(()) if !is_new_name => {
                    invalid(entity, "another entity has the same name").remedy("rename one of them")
                }
                Ok(()) if !is_new_path => {
                    invalid(entity, format!("another entity has the path {}", entity.path))
                        .remedy("give one of them another path")
                }
                Ok(()) => continue,
            };
            faults.push(fault);
        }
        faults
    }

    /// The nine entities of the college, used if the configuration names none.
    pub fn builtin() -> Self {
        let mut cameras = Entity::new("cameras", "tbl_camera", &["camera_id"]);
        cameras.exclude = ["camera_ip_address", "camera_username", "camera_password"]
            .map(str::to_owned)
            .to_vec();
        cameras.redact = vec!["camera_live_feed".to_owned()];
        Self {
            entities: vec![
                Entity::new("rooms", "tbl_room", &["room_id"]),
                cameras,
                Entity::new("faculties", "tbl_faculty", &["faculty_id"]).file(
                    "faculty_images",
                    "cloud_image_urls",
                    "faculty_images",
                    true,
                ),
                Entity::new("teaching_loads", "tbl_teaching_load", &["teaching_load_id"]),
                Entity::new("attendance_records", "tbl_attendance_record", &["record_id"]).retention(30),
                Entity::new("leaves", "tbl_leave", &["leave_id"])
                    .retention(90)
                    .file("leave_slip_image", "leave_slip_cloud_url", "leave_slips", false),
                Entity::new("passes", "tbl_pass", &["pass_id"])
                    .retention(90)
                    .file("pass_slip_image", "pass_slip_cloud_url", "passes", false),
                Entity::new("recognition_logs", "tbl_recognition_logs", &["log_id"]).retention(7),
                Entity::new("stream_recordings", "tbl_stream_recordings", &["recording_id"])
                    .retention(7)
                    .file("filepath", "video_cloud_url", "stream_recordings", false),
            ],
        }
    }

    /// The entities in push order: parents before children.
    pub fn entities(&self) -> &[Entity] {
        &self.entities
    }

    /// The entities with their indexes.
    pub fn indexed(&self) -> impl ExactSizeIterator<Item = (EntityIndex, &Entity)> {
        let entities = self.entities.iter().enumerate();
        entities.map(|(index, entity)| (EntityIndex(index), entity))
    }

    /// Fails if a column is to be encrypted and there is no key.
    ///
    /// # Errors
    /// A configuration error that names the entity.
    pub(crate) fn require_keys(&self) -> Result<()> {
        let mut entities = self.entities.iter();
        match entities.find(|entity| !entity.encrypt.is_empty() && entity.keys.is_none()) {
            None => Ok(()),
            Some(entity) => Err(Error::config(
                format!("encrypt columns of {}", entity.name),
                "there is no file with keys at encryption.key_file",
            )
            .remedy("run `cloud-sync key create`, and keep the recovery code that it prints")),
        }
    }

    /// The index of the entity with this name.
    pub fn find(&self, name: &str) -> Option<EntityIndex> {
        let index = self.entities.iter().position(|entity| entity.name == name);
        index.map(EntityIndex)
    }

    /// Checks that `names` are entities, and returns their indexes in push order; all of them if `names` is
    /// empty.
    ///
    /// # Errors
    /// A configuration error that names the unknown entity and the nearest known one.
    pub fn select(&self, names: &[String]) -> Result<Vec<EntityIndex>> {
        if names.is_empty() {
            return Ok(self.indexed().map(|(index, _)| index).collect());
        }
        let mut chosen = Vec::with_capacity(names.len());
        for name in names {
            let entity_index = self.find(name).ok_or_else(|| {
                let near = self
                    .entities
                    .iter()
                    .map(|entity| entity.name.as_str())
                    .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)))
                    .unwrap_or("none");
                Error::config(
                    format!("select entity {name}"),
                    "the catalogue has no such entity",
                )
                .remedy(format!("did you mean {near}?"))
            })?;
            chosen.push(entity_index);
        }
        chosen.sort_unstable();
        chosen.dedup();
        Ok(chosen)
    }
}

impl Index<EntityIndex> for Catalogue {
    type Output = Entity;

    fn index(&self, index: EntityIndex) -> &Entity {
        &self.entities[index.0]
    }
}

fn invalid(entity: &Entity, cause: impl Into<String>) -> Error {
    Error::config(format!("use entity {}", entity.name), cause)
}

/// The longest name and path of an entity, in bytes.
pub(crate) const LONGEST_NAME: usize = 60;

/// Whether a name is safe in a URL's path and as an SQL name: letters, digits, `_` and `-`.
fn is_plain_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= LONGEST_NAME
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// The first column under `encrypt` that the cloud, or this program, must be able to read; and why.
fn unencryptable(entity: &Entity) -> Option<(&str, &'static str)> {
    let names = |names: &[String], column: &String| names.contains(column);
    let of_files = |column: &String| {
        let mut files = entity.files.iter();
        files.any(|file| file.column == *column || file.url_column == *column)
    };
    let of_retention = |column: &String| {
        entity.retention.as_ref().is_some_and(|retention| {
            retention.column == *column || retention.cloud_days_by.as_ref() == Some(column)
        })
    };
    entity.encrypt.iter().find_map(|column| {
        let why = if names(&entity.key, column) {
            "it is part of the key, by which the cloud finds the row"
        } else if names(&entity.exclude, column) {
            "it is excluded"
        } else if of_files(column) {
            "it is the column of a file or of its URL"
        } else if of_retention(column) {
            "it is the retention's column, by which the cloud lists rows"
        } else if entity.rename.contains_key(column) || entity.columns.contains_key(column) {
            "the cloud has it under another name or in another form"
        } else if entity.constants.contains_key(column) {
            "it has a fixed value in the cloud"
        } else {
            return None;
        };
        Some((column.as_str(), why))
    })
}

fn check_entity(entity: &Entity) -> Result<()> {
    if !is_plain_name(&entity.name) {
        return Err(invalid(
            entity,
            "its name is empty or has other characters than letters, digits, _ and -",
        )
        .remedy("rename it, with 60 characters at most"));
    }
    if !is_plain_name(&entity.path) {
        return Err(invalid(
            entity,
            format!("its path {:?} is not one plain segment", entity.path),
        )
        .remedy("use letters, digits, _ and -, as in leave-slips"));
    }
    if paths::is_reserved(&entity.path) {
        return Err(invalid(
            entity,
            format!(
                "its path {} is the path of one of the cloud's own calls",
                entity.path
            ),
        )
        .remedy(format!("set another path, as in path = \"{}-rows\"", entity.path)));
    }
    if entity.key.is_empty() {
        return Err(invalid(entity, "it names no key column")
            .remedy("set key = [\"…\"] to the primary key's columns"));
    }
    if let Some(column) = entity
        .key
        .iter()
        .find(|column| entity.leaves_out(column) || entity.redact.contains(column))
    {
        return Err(
            invalid(entity, format!("its key column {column} is excluded or redacted")).remedy(
                "the cloud needs the whole key: take the column out of exclude and redact, or name it under \
                     include if its name only looks private",
            ),
        );
    }
    if let Some((column, why)) = unencryptable(entity) {
        return Err(
            invalid(entity, format!("its column {column} cannot be encrypted: {why}"))
                .remedy("take it out of encrypt"),
        );
    }
    for (file_index, file) in entity.files.iter().enumerate() {
        let url_column = &file.url_column;
        if let Some(other) = entity.files[..file_index]
            .iter()
            .find(|other| other.url_column == *url_column)
        {
            return Err(invalid(
                entity,
                format!(
                    "its file columns {} and {} have one url_column, {url_column}",
                    other.column, file.column
                ),
            )
            .remedy("give each file column a url_column of its own"));
        }
        let others = entity.files.iter().enumerate();
        let others = others.filter(|(other, _)| *other != file_index || file.column_value.is_none());
        let mut other_columns = others.map(|(_, file)| &file.column).chain(&entity.key);
        let is_retention_column = entity
            .retention
            .as_ref()
            .is_some_and(|retention| retention.column == *url_column);
        if is_retention_column || other_columns.any(|column| column == url_column) {
            return Err(invalid(
                entity,
                format!(
                    "its url_column {url_column} is a file column, a key column or the retention's column, \
                     and would overwrite it"
                ),
            )
            .remedy(
                "name another url_column, which need not be in the table; \
                 or set column_value, if the cloud wants the file's address in the file column itself",
            ));
        }
        if !is_plain_name(&file.directory) {
            return Err(invalid(
                entity,
                format!(
                    "its upload directory {:?} is not one plain segment",
                    file.directory
                ),
            )
            .remedy("use letters, digits, _ and -, as in leave_slips"));
        }
        if entity.exclude.contains(&file.column) {
            return Err(
                invalid(entity, format!("its file column {} is excluded", file.column))
                    .remedy("take it out of exclude or out of files"),
            );
        }
    }
    server::check_server_settings(entity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_has_nine_entities_with_rooms_first_and_valid() {
        let builtin = Catalogue::builtin();
        assert_eq!(builtin.entities().len(), 9);
        assert_eq!(builtin.entities()[0].name, "rooms");
        assert_eq!(Catalogue::new(builtin.entities().to_vec()).unwrap(), builtin);
    }

    #[test]
    fn deletes_default_to_keep_if_there_is_a_retention() {
        let builtin = Catalogue::builtin();
        let deletes_of = |name: &str| builtin[builtin.find(name).unwrap()].deletes();
        assert_eq!(deletes_of("rooms"), Deletes::Propagate);
        assert_eq!(deletes_of("recognition_logs"), Deletes::Keep);
    }

    #[test]
    fn wrong_entities_are_refused_by_name() {
        let no_key = Entity::new("rooms", "tbl_room", &[]);
        let message = Catalogue::new(vec![no_key]).unwrap_err().to_string();
        assert!(message.contains("rooms") && message.contains("key"), "{message}");
        let mut secret_key = Entity::new("cameras", "tbl_camera", &["camera_id"]);
        secret_key.exclude = vec!["camera_id".into()];
        assert!(Catalogue::new(vec![secret_key]).is_err());
        let twice = vec![Entity::new("a", "t", &["k"]), Entity::new("a", "u", &["k"])];
        assert!(Catalogue::new(twice).is_err());
    }

    #[test]
    fn the_paths_of_the_clouds_own_calls_are_no_entitys() {
        for path in paths::RESERVED {
            // Whether the path is named, or made of the name.
            let mut named = Entity::new("rooms", "tbl_room", &["room_id"]);
            named.path = path.to_owned();
            let mut unnamed = Entity::new(&path.replace('-', "_"), "tbl_room", &["room_id"]);
            unnamed.path = String::new();
            for entity in [named, unnamed] {
                let error = Catalogue::new(vec![entity.clone()]).unwrap_err();
                let message = error.to_string();
                assert!(
                    message.contains(&entity.name) && message.contains(&format!("path {path} is")),
                    "{message}"
                );
                assert!(message.contains(&format!("path = \"{path}-rows\"")), "{message}");
            }
        }
    }

    #[test]
    fn a_url_column_is_for_one_file_column_and_overwrites_nothing_else() {
        for (column, url_column) in [
            ("a", "url"),
            ("b", "b"),
            ("b", "a"),
            ("b", "id"),
            ("b", "created_at"),
        ] {
            let entity = Entity::new("rooms", "tbl_room", &["id"])
                .retention(7)
                .file("a", "url", "d", false)
                .file(column, url_column, "d", false);
            let message = Catalogue::new(vec![entity]).unwrap_err().to_string();
            assert!(
                message.contains("rooms") && message.contains("url_column"),
                "{message}"
            );
        }
    }

    #[test]
    fn select_suggests_the_near_name() {
        let message = Catalogue::builtin()
            .select(&["leafes".into()])
            .unwrap_err()
            .to_string();
        assert!(message.contains("leaves"), "{message}");
    }
}
