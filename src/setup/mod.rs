//! `setup`: proposes the settings of a site from what its database and its media folder hold.
//!
//! [`propose`] looks at the tables and decides which are replicated; [`config_text`](Proposal::config_text)
//! writes that down as `cloud-sync.toml`, with the reason of each line. Nothing is changed in the database.

mod config_text;
mod survey;

use serde::Serialize;
use tokio_postgres::Client;

pub(crate) use self::config_text::ConfigAnswers;
use crate::catalogue::Catalogue;
use crate::catalogue::declared::{TablePattern, entity_name};
use crate::catalogue::private_columns::looks_private;
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
    Ok(Proposal::of(surveyed))
}

impl Proposal {
    fn of(surveyed: Vec<SurveyedTable>) -> Self {
        let builtin = Catalogue::builtin();
        let is_builtin = |one: &SurveyedTable| {
            one.table.schema == "public"
                && builtin
                    .entities()
                    .iter()
                    .any(|entity| entity.table == one.table.name)
        };
        let is_college = surveyed.iter().filter(|one| is_builtin(one)).count() == builtin.entities().len();
        let mut proposal = Self {
            builtin: is_college,
            tables: Vec::new(),
            left_out: Vec::new(),
            patterns: Vec::new(),
            owners: Vec::new(),
            is_owned_by_superuser: false,
        };
        let mut schemas: Vec<&str> = Vec::new();
        for one in &surveyed {
            let left_out = if is_college && !is_builtin(one) {
                Some(("it is none of the nine tables of a college".to_owned(), false))
            } else if is_college {
                None
            } else {
                why_left_out(one)
            };
            if let Some((why, needs_pattern)) = left_out {
                let table = one.table.full_name();
                proposal.left_out.push(LeftOutTable {
                    pattern: needs_pattern.then(|| format!("!{table}")),
                    table,
                    why,
                });
                continue;
            }
            if !schemas.contains(&&*one.table.schema) {
                schemas.push(&one.table.schema);
            }
            if !proposal.owners.contains(&one.owner) {
                proposal.owners.push(one.owner.clone());
            }
            proposal.is_owned_by_superuser |= one.is_owned_by_superuser;
            proposal.tables.push(proposed(one, &builtin, is_college));
        }
        if !is_college {
            proposal.patterns = schemas.iter().map(|schema| format!("{schema}.*")).collect();
            // A pattern that would take a table of another schema cannot be: it names its schema.
            let left_out = proposal.left_out.iter();
            let of_schema = left_out.filter(|one| {
                let schema = one.table.split('.').next().unwrap_or_default();
                schemas.contains(&schema)
            });
            proposal
                .patterns
                .extend(of_schema.filter_map(|one| one.pattern.clone()));
        }
        proposal
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
    let private = table.key.iter().find(|column| looks_private(column).is_some())?;
    Some((format!("its key column {private} looks private"), false))
}

fn framework_tables() -> impl Iterator<Item = TablePattern> {
    include_str!("framework_tables.txt")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| TablePattern::parse(line).ok())
}

fn proposed(one: &SurveyedTable, builtin: &Catalogue, is_college: bool) -> ProposedTable {
    let table = &one.table;
    let of_college = builtin
        .entities()
        .iter()
        .find(|entity| is_college && entity.table == table.name);
    let entity = match of_college {
        Some(entity) => entity.name.clone(),
        None => entity_name(&table.schema, &table.name),
    };
    let is_private = |column: &&String| match of_college {
        Some(entity) => entity.exclude.contains(column),
        None => looks_private(column).is_some(),
    };
    let url_column = |column: &str| {
        let mut name = format!("{column}_cloud_url");
        while table.columns.contains(&name) {
            name.push('_');
        }
        name
    };
    ProposedTable {
        table: table.full_name(),
        sql_name: table.sql_name(),
        rows: one.rows,
        bytes: one.bytes,
        private: table.columns.iter().filter(is_private).cloned().collect(),
        files: one
            .files
            .iter()
            .filter(|_| of_college.is_none())
            .map(|files| ProposedFiles {
                url_column: url_column(&files.column),
                column: files.column.clone(),
                directory: entity.replace('-', "_"),
                many: files.many,
            })
            .collect(),
        retention_by: if one.rows > MANY_ROWS && of_college.is_none() {
            one.times.clone()
        } else {
            Vec::new()
        },
        entity,
    }
}
