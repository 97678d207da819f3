//! `setup`: proposes the settings of a site from what its database and its media folder hold.
//!
//! [`propose`] looks at the tables and decides which are replicated; [`config_text`](Proposal::config_text)
//! writes that down as `cloud-sync.toml`, with the reason of each line. Nothing is changed in the database.

mod answers;
mod config_text;
mod survey;

use std::collections::HashSet;

use serde::Serialize;
use tokio_postgres::Client;

pub(crate) use self::answers::SetupAnswers;
pub(crate) use self::config_text::ConfigAnswers;
use crate::catalogue::declared::{TablePattern, entity_name, unlike_entity_name};
use crate::catalogue::private_columns::looks_private;
use crate::catalogue::{Catalogue, Entity};
use crate::error::Result;
use crate::media::MediaRoot;
use survey::SurveyedTable;

/// Tables with more rows than this get a line about retention.
const MANY_ROWS: i64 = 100_000;

/// What is replicated, and what is not.
#[derive(Debug, Serialize)]
pub(crate) struct Proposal {
    /// Whether these are the tables of the built-in catalogue, which needs no entity in the settings.
    pub(crate) builtin: bool,
    /// The tables that are replicated.
    pub(crate) tables: Vec<ProposedTable>,
    /// The tables that are not.
    pub(crate) left_out: Vec<LeftOutTable>,
    /// The patterns of `catalogue.tables`.
    pub(crate) patterns: Vec<String>,
    /// The roles that own the tables.
    pub(crate) owners: Vec<String>,
    /// Whether one of them is a superuser.
    pub(crate) is_owned_by_superuser: bool,
}

/// A table that is replicated.
#[derive(Debug, Serialize)]
pub(crate) struct ProposedTable {
    /// Its name with its schema.
    pub(crate) table: String,
    /// The same, quoted for SQL where that is needed.
    #[serde(skip)]
    sql_name: String,
    /// Its entity's name.
    pub(crate) entity: String,
    /// Whether the settings must say that name: the table's own is another entity's.
    #[serde(skip)]
    is_renamed: bool,
    /// About how many rows it has.
    pub(crate) rows: i64,
    /// How large it is with its indexes.
    pub(crate) bytes: i64,
    /// Columns that stay on the site.
    pub(crate) private: Vec<String>,
    /// Columns that name files.
    pub(crate) files: Vec<ProposedFiles>,
    /// Columns by which a retention can be measured, if it has many rows.
    pub(crate) retention_by: Vec<String>,
}

/// A column that names files.
#[derive(Debug, Serialize)]
pub(crate) struct ProposedFiles {
    /// The column.
    pub(crate) column: String,
    /// The column that the cloud's row gets for the URL.
    pub(crate) url_column: String,
    /// The upload directory.
    pub(crate) directory: String,
    /// Whether it holds JSON arrays of paths.
    pub(crate) many: bool,
}

/// A table that is not replicated.
#[derive(Debug, Serialize)]
pub(crate) struct LeftOutTable {
    /// Its name with its schema.
    pub(crate) table: String,
    /// Why.
    pub(crate) why: String,
    /// The pattern that leaves it out; `None` if none is needed.
    #[serde(skip)]
    pattern: Option<String>,
}

/// Looks at the site's database and its media folder.
///
/// # Errors
/// The source's.
pub(crate) async fn propose(client: &Client, root: &MediaRoot) -> Result<Proposal> {
    let surveyed = survey::survey(client, root).await?;
    Ok(Proposal::of(&surveyed))
}

impl Proposal {
    fn of(surveyed: &[SurveyedTable]) -> Self {
        let builtin = Catalogue::builtin();
        let of_college = surveyed
            .iter()
            .filter(|one| entity_of_college(&builtin, one).is_some());
        if of_college.count() == builtin.entities().len() {
            Self::of_college(&builtin, surveyed)
        } else {
            Self::of_patterns(surveyed)
        }
    }

    fn empty(builtin: bool) -> Self {
        Self {
            builtin,
            tables: Vec::new(),
            left_out: Vec::new(),
            patterns: Vec::new(),
            owners: Vec::new(),
            is_owned_by_superuser: false,
        }
    }

    /// The nine tables of a college, as the built-in catalogue has them.
    fn of_college(builtin: &Catalogue, surveyed: &[SurveyedTable]) -> Self {
        let mut proposal = Self::empty(true);
        for one in surveyed {
            match entity_of_college(builtin, one) {
                Some(entity) => proposal.take(one, ProposedTable::of_college(one, entity)),
                None => proposal.left_out.push(LeftOutTable {
                    table: one.table.full_name(),
                    why: "it is none of the nine tables of a college".to_owned(),
                    pattern: None,
                }),
            }
        }
        proposal
    }

    /// Every table that can be replicated, by patterns.
    fn of_patterns(surveyed: &[SurveyedTable]) -> Self {
        let mut proposal = Self::empty(false);
        let mut schemas: Vec<&str> = Vec::new();
        let mut exceptions = Vec::new();
        let mut names = EntityNames::default();
        for one in surveyed {
            let table = &one.table;
            let Some((why, needs_pattern)) = why_left_out(one) else {
                if !schemas.contains(&&*table.schema) {
                    schemas.push(&table.schema);
                }
                proposal.take(
                    one,
                    ProposedTable::of(one, names.next(&table.schema, &table.name)),
                );
                continue;
            };
            let pattern = needs_pattern.then(|| format!("!{}", TablePattern::of(&table.schema, &table.name)));
            exceptions.extend(pattern.clone().map(|pattern| (&*table.schema, pattern)));
            proposal.left_out.push(LeftOutTable {
                table: table.full_name(),
                why,
                pattern,
            });
        }
        // A schema of which nothing is taken needs no exceptions.
        let exceptions = exceptions
            .into_iter()
            .filter(|(schema, _)| schemas.contains(schema));
        let taken = schemas
            .iter()
            .map(|schema| TablePattern::all_of(schema).to_string());
        proposal.patterns = taken.chain(exceptions.map(|(_, pattern)| pattern)).collect();
        proposal
    }

    fn take(&mut self, one: &SurveyedTable, table: ProposedTable) {
        if !self.owners.contains(&one.owner) {
            self.owners.push(one.owner.clone());
        }
        self.is_owned_by_superuser |= one.is_owned_by_superuser;
        self.tables.push(table);
    }
}

/// The entity of the built-in catalogue whose table this is.
fn entity_of_college<'a>(builtin: &'a Catalogue, one: &SurveyedTable) -> Option<&'a Entity> {
    let mut entities = builtin.entities().iter();
    entities.find(|entity| one.table.schema == "public" && entity.table == one.table.name)
}

/// The names of the entities so far: tables of other schemas, and names with other characters, can come to one.
#[derive(Default)]
struct EntityNames {
    /// As paths, in which `_` and `-` are one.
    paths: HashSet<String>,
}

impl EntityNames {
    /// The next table's name, and whether it is another one than follows from the table.
    fn next(&mut self, schema: &str, table: &str) -> (String, bool) {
        let name = entity_name(schema, table);
        if self.paths.insert(name.replace('_', "-")) {
            return (name, false);
        }
        let name = unlike_entity_name(schema, table);
        self.paths.insert(name.replace('_', "-"));
        (name, true)
    }
}

/// Why a table is not replicated, and whether a pattern must leave it out.
fn why_left_out(one: &SurveyedTable) -> Option<(String, bool)> {
    let table = &one.table;
    if let Some(extension) = &table.extension {
        return Some((format!("it belongs to extension {extension}"), false));
    }
    if framework_tables().any(|pattern| pattern.matches(&table.schema, &table.name)) {
        return Some(("a framework keeps it for itself".to_owned(), true));
    }
    if table.key.is_empty() {
        return Some((
            "it has no primary key and no unique key without nulls".to_owned(),
            true,
        ));
    }
    let private = table
        .key
        .iter()
        .find(|column| looks_private(&table.name, column).is_some())?;
    Some((format!("its key column {private} looks private"), false))
}

fn framework_tables() -> impl Iterator<Item = TablePattern> {
    include_str!("framework_tables.txt")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| TablePattern::parse(line).ok())
}

impl ProposedTable {
    fn of_college(one: &SurveyedTable, entity: &Entity) -> Self {
        let table = &one.table;
        let private = table
            .columns
            .iter()
            .filter(|column| entity.exclude.contains(column));
        Self {
            table: table.full_name(),
            sql_name: table.sql_name(),
            entity: entity.name.clone(),
            is_renamed: false,
            rows: one.rows,
            bytes: one.bytes,
            private: private.cloned().collect(),
            files: Vec::new(),
            retention_by: Vec::new(),
        }
    }

    fn of(one: &SurveyedTable, (entity, is_renamed): (String, bool)) -> Self {
        let table = &one.table;
        let is_private = |column: &&String| looks_private(&table.name, column).is_some();
        let url_column = |column: &str| {
            let mut name = format!("{column}_cloud_url");
            while table.columns.contains(&name) {
                name.push('_');
            }
            name
        };
        let files = one.files.iter().map(|files| ProposedFiles {
            url_column: url_column(&files.column),
            column: files.column.clone(),
            directory: entity.replace('-', "_"),
            many: files.many,
        });
        Self {
            table: table.full_name(),
            sql_name: table.sql_name(),
            is_renamed,
            rows: one.rows,
            bytes: one.bytes,
            private: table.columns.iter().filter(is_private).cloned().collect(),
            files: files.collect(),
            retention_by: if one.rows > MANY_ROWS {
                one.times.clone()
            } else {
                Vec::new()
            },
            entity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_come_to_one_are_told_apart() {
        let mut names = EntityNames::default();
        let named = [
            ("public", "sales_book"),
            ("sales", "book"),
            ("public", "a,b"),
            ("public", "a-b"),
        ]
        .map(|(schema, table)| names.next(schema, table));
        assert_eq!(named[0], ("sales_book".to_owned(), false));
        assert_eq!(named[2], ("a_b".to_owned(), false));
        for (name, is_renamed) in [&named[1], &named[3]] {
            assert!(*is_renamed && name.len() > 9, "{name}");
        }
    }
}
