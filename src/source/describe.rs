//! What the tables of the catalogue look like. [`super::fit`] checks whether the catalogue fits them.

use std::sync::LazyLock;

use tokio_postgres::{Client, Row, Statement};

use super::column_type::{Codec, SourceColumn};
use super::{condition, fit};
use crate::catalogue::{Catalogue, Entity};
use crate::error::{Error, Kind, Result};
use crate::sql_template::{fill, statement};

/// A column of an entity's key, as the unique index compares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its name.
    pub name: String,
    /// Its equality operator, with its schema: `operator(pg_catalog.=)`.
    pub equals: String,
}

/// A source table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    /// Its oid.
    pub oid: u32,
    /// Its name with its schema, quoted for SQL.
    pub sql_name: String,
    /// Whether it is partitioned.
    pub partitioned: bool,
    /// Its columns in order.
    pub columns: Vec<SourceColumn>,
    /// The key columns in the entity's order; empty if there is no such unique key.
    pub key: Vec<KeyColumn>,
    /// The collation of a key column whose version is not the one that its index was made with.
    pub stale_collation: Option<String>,
    /// A table that inherits from it although it is not partitioned.
    pub child: Option<String>,
}

impl SourceTable {
    /// The column with this name.
    pub fn column(&self, name: &str) -> Option<&SourceColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// A table that does not exist.
    fn gone() -> Self {
        Self {
            oid: 0,
            sql_name: String::new(),
            partitioned: false,
            columns: Vec::new(),
            key: Vec::new(),
            stale_collation: None,
            child: None,
        }
    }

    /// Whether the entity's rows can be found and sent: the table is there, has the key, and each column that
    /// must not leave the site under another name.
    pub fn fits(&self, entity: &Entity) -> bool {
        let has = |name: &String| self.column(name).is_some();
        self.oid != 0
            && self.key.len() == entity.key.len()
            && entity.key.iter().all(has)
            && entity.exclude.iter().chain(&entity.redact).all(has)
    }

    /// The key's column, if it is one column of integers.
    pub fn number_key(&self) -> Option<&SourceColumn> {
        match self.key.as_slice() {
            [key] => self
                .column(&key.name)
                .filter(|column| matches!(column.codec, Codec::Binary(20 | 21 | 23))),
            _ => None,
        }
    }
}
/// A table as it is now, and why the entity does not fit it.
#[derive(Debug)]
pub struct DescribedTable {
    /// The table; without an oid if it does not exist.
    pub table: SourceTable,
    /// A configuration error with its remedy; `None` if the entity fits.
    pub unfit: Option<Error>,
    /// Whether the table has another name than the catalogue says, and fits otherwise.
    pub renamed: bool,
}

/// SQL that finds the oid of the table of this name. A name without a schema is looked up where the site
/// looks for its tables.
pub(super) fn named(name: &str) -> String {
    fill(statement!("tables", "named_table"), &[("name", name)])
}

/// Finds the table of a name.
static FIND: LazyLock<String> = LazyLock::new(|| {
    let values = [("named_table", &*named("$1::text"))];
    fill(statement!("tables", "find"), &values)
});

/// Reads the tables of the catalogue, in its order, and checks that the catalogue fits them.
///
/// # Errors
/// A configuration error with every fault of every entity, each with its remedy: see [`table_faults`].
pub async fn fitting_tables(client: &Client, catalogue: &Catalogue) -> Result<Vec<SourceTable>> {
    let mut tables = Vec::with_capacity(catalogue.entities().len());
    let mut all = Vec::new();
    for entity in catalogue.entities() {
        let (table, faults) = table_faults(client, entity).await?;
        all.extend(faults);
        tables.extend(table);
    }
    if all.is_empty() {
        Ok(tables)
    } else {
        Err(Error::all_of("use the catalogue", all))
    }
}

/// The table of an entity, and why the entity does not fit it: a missing table, a missing column, a key that
/// is not unique or may be null, a condition that does not hold for the row alone, a policy that hides rows.
///
/// # Errors
/// The source's.
pub(crate) async fn table_faults(
    client: &Client,
    entity: &Entity,
) -> Result<(Option<SourceTable>, Vec<Error>)> {
    let mut faults = Vec::new();
    let Some(table) = keep_fault(table(client, entity).await, &mut faults)? else {
        return Ok((None, faults));
    };
    faults.extend(fit::column_faults(entity, &table));
    keep_fault(fit::check_key(client, entity, &table).await, &mut faults)?;
    let condition = condition::used(client, entity, &table)
        .await
        .map_err(|error| Error::postgres(format!("use where of entity {}", entity.name), error))
        .flatten();
    keep_fault(condition, &mut faults)?;
    keep_fault(fit::check_policies(client, entity, &table).await, &mut faults)?;
    Ok((Some(table), faults))
}

/// Keeps a configuration error; any other error is returned.
fn keep_fault<T>(result: Result<T>, faults: &mut Vec<Error>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == Kind::Config => {
            faults.push(error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The tables of the catalogue as they are now: see [`described_tables`].
///
/// # Errors
/// The source's.
pub async fn present_tables(client: &Client, catalogue: &Catalogue) -> Result<Vec<SourceTable>> {
    Ok(described_tables(client, catalogue)
        .await?
        .into_iter()
        .map(|described| described.table)
        .collect())
}

/// Reads the tables of the catalogue, in its order, whether or not the entities fit them. Capture must be
/// installed.
///
/// A table that was renamed is the one that its triggers are on.
///
/// # Errors
/// The source's.
pub async fn described_tables(client: &Client, catalogue: &Catalogue) -> Result<Vec<DescribedTable>> {
    let mut all = Vec::with_capacity(catalogue.entities().len());
    for entity in catalogue.entities() {
        all.push(described_table(client, entity).await?);
    }
    Ok(all)
}

/// The table of one entity as it is now, and whether the entity fits it.
///
/// # Errors
/// The source's.
pub(crate) async fn described_table(client: &Client, entity: &Entity) -> Result<DescribedTable> {
    let operation = naming(entity);
    let failed = |error| Error::postgres(&operation, error);
    let mut renamed = false;
    let mut found = client
        .query_opt(FIND.as_str(), &[&entity.table])
        .await
        .map_err(failed)?;
    if found.is_none() {
        found = client
            .query_opt(statement!("tables", "find_captured"), &[&entity.name])
            .await
            .map_err(failed)?;
        renamed = found.is_some();
    }
    let Some(row) = found else {
        return Ok(DescribedTable {
            table: SourceTable::gone(),
            unfit: Some(missing(entity)),
            renamed: false,
        });
    };
    let table = match describe_table(client, entity, &row).await {
        Ok(table) => table,
        Err(error) if error.kind() == Kind::Config => {
            return Ok(DescribedTable {
                table: SourceTable::gone(),
                unfit: Some(error),
                renamed: false,
            });
        }
        Err(error) => return Err(error),
    };
    let unfit = match fit::column_faults(entity, &table).into_iter().next() {
        None => fit::check_key(client, entity, &table).await,
        Some(unfit) => Err(unfit),
    };
    let unfit = match unfit {
        Ok(()) => renamed.then(|| {
            Error::config(
                naming(entity),
                format!("it was renamed to {}, and is still captured", table.sql_name),
            )
            .remedy("correct the entity's table, then run `cloud-sync init`")
        }),
        Err(error) if error.kind() == Kind::Config => {
            renamed = false;
            Some(error)
        }
        Err(error) => return Err(error),
    };
    Ok(DescribedTable {
        table,
        unfit,
        renamed,
    })
}

fn naming(entity: &Entity) -> String {
    format!("read table {} of entity {}", entity.table, entity.name)
}

pub(super) fn missing(entity: &Entity) -> Error {
    Error::config(naming(entity), "the database has no such table").remedy(
        "create it, correct the entity's table, or take the entity out of the catalogue; then run \
        `cloud-sync init`",
    )
}

async fn table(client: &Client, entity: &Entity) -> Result<SourceTable> {
    let found = client
        .query_opt(FIND.as_str(), &[&entity.table])
        .await
        .map_err(|error| Error::postgres(naming(entity), error))?;
    match found {
        Some(row) => describe_table(client, entity, &row).await,
        None => Err(missing(entity)),
    }
}

async fn describe_table(client: &Client, entity: &Entity, row: &Row) -> Result<SourceTable> {
    let operation = naming(entity);
    let failed = |error| Error::postgres(&operation, error);
    let kind: &str = row.get(2);
    if kind != "r" && kind != "p" {
        return Err(
            Error::config(&operation, "it is not a table, so it can have no triggers")
                .remedy("name the table that the view or foreign table reads from"),
        );
    }
    if row.get(3) {
        return Err(Error::config(
            &operation,
            "it is a partition: what is written through the table above it would not be captured",
        )
        .remedy("name the partitioned table as the entity's table"));
    }
    let oid: u32 = row.get(0);
    let columns: Vec<_> = client
        .query(statement!("tables", "columns"), &[&oid])
        .await
        .map_err(failed)?
        .iter()
        .map(|row| SourceColumn::describe(row, entity))
        .collect();
    let keys = unique_keys(client, entity, oid).await?;
    let (key, stale_collation) = keys
        .into_iter()
        .find_map(|unique| unique.in_order_of(entity))
        .unwrap_or_default();
    Ok(SourceTable {
        oid,
        sql_name: row.get(1),
        partitioned: kind == "p",
        columns,
        key,
        stale_collation,
        child: row.get(4),
    })
}

/// A unique index: its key columns, and the collation of one of them that is stale.
pub(super) struct UniqueKey {
    pub(super) primary: bool,
    pub(super) columns: Vec<KeyColumn>,
    stale_collation: Option<String>,
}

impl UniqueKey {
    /// The key columns in the entity's order; `None` if the index is on other columns.
    fn in_order_of(self, entity: &Entity) -> Option<(Vec<KeyColumn>, Option<String>)> {
        if self.columns.len() != entity.key.len() {
            return None;
        }
        let column = |name: &String| self.columns.iter().find(|column| column.name == *name).cloned();
        let key = entity.key.iter().map(column).collect::<Option<_>>()?;
        Some((key, self.stale_collation))
    }
}

/// The table's unique indexes, the primary key first.
pub(super) async fn unique_keys(client: &Client, entity: &Entity, oid: u32) -> Result<Vec<UniqueKey>> {
    let failed = |error| Error::postgres(naming(entity), error);
    let rows = client
        .query(statement!("tables", "unique_keys"), &[&oid])
        .await
        .map_err(failed)?;
    let mut stale_default = None;
    if rows.iter().any(|row| row.get(5)) {
        let stale = client
            .query_opt(statement!("tables", "stale_default_collation"), &[])
            .await
            .map_err(failed)?;
        stale_default = stale.map(|row| row.get::<_, String>(0));
    }
    let mut keys: Vec<(u32, UniqueKey)> = Vec::new();
    for row in &rows {
        let index: u32 = row.get(0);
        if keys.last().is_none_or(|(last, _)| *last != index) {
            let primary = row.get(1);
            keys.push((
                index,
                UniqueKey {
                    primary,
                    columns: Vec::new(),
                    stale_collation: None,
                },
            ));
        }
        if let Some((_, unique)) = keys.last_mut() {
            unique.columns.push(KeyColumn {
                name: row.get(2),
                equals: row
                    .get::<_, Option<String>>(3)
                    .unwrap_or_else(|| "operator(pg_catalog.=)".to_owned()),
            });
            if unique.stale_collation.is_none() {
                let of_database = row.get::<_, bool>(5).then(|| stale_default.clone()).flatten();
                unique.stale_collation = row.get::<_, Option<String>>(4).or(of_database);
            }
        }
    }
    Ok(keys.into_iter().map(|(_, unique)| unique).collect())
}

/// Reads the fingerprint of tables.
static FINGERPRINT: LazyLock<String> = LazyLock::new(|| {
    let values = [("named_table", &*named("n.name"))];
    fill(statement!("tables", "fingerprint"), &values)
});

/// Prepares [`fingerprint`] on a session: it is asked for with each batch.
///
/// # Errors
/// The source's.
pub async fn prepare_fingerprint(client: &Client) -> Result<Statement> {
    client
        .prepare(&FINGERPRINT)
        .await
        .map_err(|error| Error::postgres("prepare to read columns", error))
}

/// A number that changes whenever a column of one of the tables is added, dropped, renamed or changes its
/// type, or a partition comes or goes; and which table each of the names is of now.
///
/// # Errors
/// The source's.
pub async fn fingerprint(
    client: &Client,
    prepared: &Statement,
    oids: &[u32],
    names: &[&str],
) -> Result<(i64, Vec<Option<u32>>)> {
    let row = client
        .query_one(prepared, &[&oids, &names])
        .await
        .map_err(|error| Error::postgres("read the columns of the catalogue's tables", error))?;
    Ok((row.get(0), row.get(1)))
}
