//! What the tables of the catalogue look like. [`super::fit`] checks whether the catalogue fits them.

use std::collections::HashMap;
use std::sync::LazyLock;

use tokio_postgres::{Client, Row, Statement};

use super::column_type::{Codec, SourceColumn};
use super::{condition, fit};
use crate::catalogue::{Catalogue, Entity};
use crate::error::{Error, Result};
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
            && entity
                .exclude
                .iter()
                .chain(&entity.redact)
                .chain(&entity.encrypt)
                .all(has)
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
fn named(name: &str) -> String {
    fill(statement!("tables", "named_table"), &[("name", name)])
}

/// Finds the tables of names.
static FIND: LazyLock<String> = LazyLock::new(|| {
    let values = [("named_table", &*named("w.name"))];
    fill(statement!("tables", "find"), &values)
});

/// Reads the tables of the catalogue, in its order, and checks that the catalogue fits them.
///
/// # Errors
/// A configuration error with every fault of every entity, each with its remedy: see [`table_faults`].
pub async fn fitting_tables(client: &Client, catalogue: &Catalogue) -> Result<Vec<SourceTable>> {
    let mut tables = Vec::with_capacity(catalogue.entities().len());
    let mut all = Vec::new();
    for (table, faults) in table_faults(client, catalogue).await? {
        all.extend(faults);
        tables.extend(table);
    }
    if all.is_empty() {
        Ok(tables)
    } else {
        Err(Error::all_of("use the catalogue", all))
    }
}

/// The table of each entity, and why the entity does not fit it: a missing table, a missing column, a key that
/// is not unique or may be null, a condition that does not hold for the row alone, a policy that hides rows.
///
/// # Errors
/// The source's.
pub(crate) async fn table_faults(
    client: &Client,
    catalogue: &Catalogue,
) -> Result<Vec<(Option<SourceTable>, Vec<Error>)>> {
    let entities: Vec<&Entity> = catalogue.entities().iter().collect();
    let found = find(client, &entities).await?;
    let described = describe_found(client, &entities, found).await?;
    let oids: Vec<u32> = described.iter().flatten().map(|(table, _)| table.oid).collect();
    let policies = fit::tables_with_policies(client, &oids).await?;
    let mut all = Vec::with_capacity(entities.len());
    for (entity, described) in entities.into_iter().zip(described) {
        let (table, keys) = match described {
            Ok(described) => described,
            Err(fault) => {
                all.push((None, vec![fault]));
                continue;
            }
        };
        let mut faults = fit::column_faults(entity, &table);
        faults.extend(fit::check_key(entity, &table, &keys).err());
        let condition = condition::used(client, entity, &table)
            .await
            .map_err(|error| Error::postgres(format!("use where of entity {}", entity.name), error))?;
        faults.extend(condition.err());
        let policy = policies.get(&table.oid);
        faults.extend(policy.map(|(role, hidden)| fit::hidden_rows(entity, role, hidden)));
        all.push((Some(table), faults));
    }
    Ok(all)
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
    let entities: Vec<&Entity> = catalogue.entities().iter().collect();
    describe_entities(client, &entities).await
}

/// The table of one entity as it is now, and whether the entity fits it.
///
/// # Errors
/// The source's.
pub(crate) async fn described_table(client: &Client, entity: &Entity) -> Result<DescribedTable> {
    let described = describe_entities(client, &[entity]).await?.pop();
    described.ok_or_else(|| missing(entity))
}

async fn describe_entities(client: &Client, entities: &[&Entity]) -> Result<Vec<DescribedTable>> {
    let mut found = find(client, entities).await?;
    let lost: Vec<usize> = (0..entities.len())
        .filter(|&index| found[index].is_none())
        .collect();
    if !lost.is_empty() {
        let names: Vec<&str> = lost.iter().map(|&index| entities[index].name.as_str()).collect();
        let rows = client
            .query(statement!("tables", "find_captured"), &[&names])
            .await
            .map_err(|error| Error::postgres("find the captured tables", error))?;
        for row in rows {
            let place = lost[place(&row)];
            found[place] = Some(row);
        }
    }
    let described = describe_found(client, entities, found).await?;
    let described = described.into_iter().zip(entities).enumerate();
    Ok(described
        .map(|(index, (described, entity))| match described {
            Ok((table, keys)) => with_fit(entity, table, &keys, lost.contains(&index)),
            Err(unfit) => DescribedTable {
                table: SourceTable::gone(),
                unfit: Some(unfit),
                renamed: false,
            },
        })
        .collect())
}

fn with_fit(entity: &Entity, table: SourceTable, keys: &[UniqueKey], renamed: bool) -> DescribedTable {
    let unfit = fit::column_faults(entity, &table).into_iter().next();
    let unfit = unfit.or_else(|| fit::check_key(entity, &table, keys).err());
    let renamed = renamed && unfit.is_none();
    let unfit = unfit.or_else(|| {
        renamed.then(|| {
            Error::config(
                naming(entity),
                format!("it was renamed to {}, and is still captured", table.sql_name),
            )
            .remedy("correct the entity's table, then run `cloud-sync init`")
        })
    });
    DescribedTable {
        table,
        unfit,
        renamed,
    }
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

/// The place, from 0, that a row of [`find`] is for.
fn place(row: &Row) -> usize {
    usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or_default()
}

/// Finds the entities' tables by their names: a row of the catalog each.
///
/// # Errors
/// The source's. That a name cannot be one of a table names the entity.
pub(super) async fn find(client: &Client, entities: &[&Entity]) -> Result<Vec<Option<Row>>> {
    let names: Vec<&str> = entities.iter().map(|entity| entity.table.as_str()).collect();
    let rows = match client.query(FIND.as_str(), &[&names]).await {
        Ok(rows) => rows,
        Err(error) if error.as_db_error().is_some() && entities.len() > 1 => {
            // One of the names is no name: which one?
            let mut all = Vec::with_capacity(entities.len());
            for &entity in entities {
                all.extend(Box::pin(find(client, &[entity])).await?);
            }
            return Ok(all);
        }
        Err(error) => {
            let operation = match entities {
                [entity] => naming(entity),
                _ => "find the tables of the catalogue".to_owned(),
            };
            return Err(Error::postgres(operation, error));
        }
    };
    let mut found: Vec<Option<Row>> = entities.iter().map(|_| None).collect();
    for row in rows {
        let place = place(&row);
        found[place] = Some(row);
    }
    Ok(found)
}

/// Describes tables that [`find`] has found, each with its unique keys; or says why it can be no entity's.
async fn describe_found(
    client: &Client,
    entities: &[&Entity],
    found: Vec<Option<Row>>,
) -> Result<Vec<Result<(SourceTable, Vec<UniqueKey>)>>> {
    let oids: Vec<u32> = found.iter().flatten().map(|row| row.get(1)).collect();
    let rows = client
        .query(statement!("tables", "columns"), &[&oids])
        .await
        .map_err(|error| Error::postgres("read the columns of the catalogue's tables", error))?;
    let mut columns: HashMap<u32, Vec<&Row>> = HashMap::new();
    for row in &rows {
        columns.entry(row.get(10)).or_default().push(row);
    }
    let keys = unique_keys(client, &oids).await?;
    let found = entities.iter().zip(found);
    Ok(found
        .map(|(entity, found)| {
            let found = found.ok_or_else(|| missing(entity))?;
            check_kind(entity, &found)?;
            let oid: u32 = found.get(1);
            let columns = columns.get(&oid).into_iter().flatten();
            let keys = keys.get(&oid).cloned().unwrap_or_default();
            let key = keys.iter().find_map(|unique| unique.in_order_of(entity));
            let (key, stale_collation) = key.unwrap_or_default();
            let table = SourceTable {
                oid,
                sql_name: found.get(2),
                partitioned: found.get::<_, &str>(3) == "p",
                columns: columns.map(|row| SourceColumn::describe(row, entity)).collect(),
                key,
                stale_collation,
                child: found.get(5),
            };
            Ok((table, keys))
        })
        .collect())
}

/// Checks that what was found can have triggers.
fn check_kind(entity: &Entity, found: &Row) -> Result<()> {
    let kind: &str = found.get(3);
    if kind != "r" && kind != "p" {
        return Err(
            Error::config(naming(entity), "it is not a table, so it can have no triggers")
                .remedy("name the table that the view or foreign table reads from"),
        );
    }
    if found.get(4) {
        return Err(Error::config(
            naming(entity),
            "it is a partition: what is written through the table above it would not be captured",
        )
        .remedy("name the partitioned table as the entity's table"));
    }
    Ok(())
}

/// A unique index: its key columns, and the collation of one of them that is stale.
#[derive(Debug, Clone)]
pub(super) struct UniqueKey {
    pub(super) primary: bool,
    pub(super) columns: Vec<KeyColumn>,
    stale_collation: Option<String>,
}

impl UniqueKey {
    /// The key columns in the entity's order; `None` if the index is on other columns.
    fn in_order_of(&self, entity: &Entity) -> Option<(Vec<KeyColumn>, Option<String>)> {
        if self.columns.len() != entity.key.len() {
            return None;
        }
        let column = |name: &String| self.columns.iter().find(|column| column.name == *name).cloned();
        let key = entity.key.iter().map(column).collect::<Option<_>>()?;
        Some((key, self.stale_collation.clone()))
    }
}

/// The unique indexes of tables, by their oids, the primary key first.
async fn unique_keys(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<UniqueKey>>> {
    let failed = |error| Error::postgres("read the keys of the catalogue's tables", error);
    let rows = client
        .query(statement!("tables", "unique_keys"), &[&oids])
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
    let mut keys: HashMap<u32, Vec<UniqueKey>> = HashMap::new();
    let mut last_index = 0;
    for row in &rows {
        let of_table = keys.entry(row.get(6)).or_default();
        let index: u32 = row.get(0);
        if index != last_index {
            last_index = index;
            of_table.push(UniqueKey {
                primary: row.get(1),
                columns: Vec::new(),
                stale_collation: None,
            });
        }
        if let Some(unique) = of_table.last_mut() {
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
    Ok(keys)
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
