//! What the tables of the catalogue look like, and whether the catalogue fits the database.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::{Client, Row, Statement};

use crate::catalogue::{Catalogue, Entity};
use crate::error::{Error, Kind, Result};

/// A column of a source table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its base type's canonical name without modifiers, `text` for what the wire carries as text.
    pub wire_type: String,
    /// Its own type, written out, for casts.
    pub sql_type: String,
    /// Whether it may be null.
    pub nullable: bool,
}

/// A source table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its oid.
    pub oid: u32,
    /// Its name with its schema, quoted for SQL.
    pub sql_name: String,
    /// Whether its rows lie in partitions.
    pub partitioned: bool,
    /// Its columns in order.
    pub columns: Vec<Column>,
}

impl Table {
    /// The column with this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The names of the `bytea` columns.
    pub fn binaries(&self) -> Vec<&str> {
        self.columns
            .iter()
            .filter(|column| column.wire_type == "bytea")
            .map(|column| column.name.as_str())
            .collect()
    }

    /// A table that is not there.
    fn gone() -> Self {
        Self {
            oid: 0,
            sql_name: String::new(),
            partitioned: false,
            columns: Vec::new(),
        }
    }

    /// Whether the entity's rows can be told and found: the table is there, and has each key column.
    pub fn fits(&self, entity: &Entity) -> bool {
        self.oid != 0 && entity.key.iter().all(|name| self.column(name).is_some())
    }
}

/// A table as it stands, and why the entity does not fit it.
#[derive(Debug)]
pub struct Standing {
    /// The table; one without an oid where it is not there.
    pub table: Table,
    /// A configuration error with its remedy; none where the entity fits.
    pub unfit: Option<Error>,
    /// Whether only the name is another than the catalogue's.
    pub renamed: bool,
}

const FIND: &str = "select c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relispartition \
     from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass($1)";

const FIND_CAPTURED: &str = "select c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relispartition \
     from cloud_sync.entity e join pg_class c on c.oid = e.relid join pg_namespace n on n.oid = c.relnamespace \
     where e.name = $1 and e.detached_at is null";

const COLUMNS: &str = "\
with recursive base as (
    select a.attrelid, a.attnum, a.attname, a.attnotnull, a.atttypid as original, a.atttypid as typid
    from pg_attribute a where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
    union all
    select b.attrelid, b.attnum, b.attname, b.attnotnull, b.original, t.typbasetype
    from base b join pg_type t on t.oid = b.typid where t.typtype = 'd'
)
select b.attname::text, format_type(b.typid, null), format_type(b.original, null), not b.attnotnull,
       t.typtype::text, coalesce(e.typtype::text, ''), n.nspname::text
from base b join pg_type t on t.oid = b.typid join pg_namespace n on n.oid = t.typnamespace
left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
where t.typtype <> 'd' order by b.attnum";

const UNIQUE_KEYS: &str = "\
select i.indisprimary, array(select a.attname::text from unnest(i.indkey) with ordinality k(attnum, nth)
                            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum order by k.nth)
from pg_index i where i.indrelid = $1 and i.indisunique and i.indpred is null and i.indexprs is null and i.indisvalid";

const REFERENCES: &str = "\
select conrelid, confrelid from pg_constraint
where contype = 'f' and conrelid <> confrelid and conrelid = any($1) and confrelid = any($1)";

/// Reads the tables of the catalogue, in its order, and checks that the catalogue fits them.
///
/// # Errors
/// A configuration error that names the entity and the remedy: a missing table, a missing column, a key that is not
/// unique or may be null, parents after their children, or tables that refer to each other in a circle.
pub async fn tables(client: &Client, catalogue: &Catalogue) -> Result<Vec<Table>> {
    let mut tables = Vec::with_capacity(catalogue.entities().len());
    for entity in catalogue.entities() {
        let table = table(client, entity).await?;
        check_columns(entity, &table)?;
        check_key(client, entity, &table).await?;
        tables.push(table);
    }
    check_order(client, catalogue, &tables).await?;
    Ok(tables)
}

/// The tables of the catalogue as they stand: see [`standing`].
///
/// # Errors
/// The source's.
pub async fn tables_as_they_stand(client: &Client, catalogue: &Catalogue) -> Result<Vec<Table>> {
    Ok(standing(client, catalogue)
        .await?
        .into_iter()
        .map(|standing| standing.table)
        .collect())
}

/// Reads the tables of the catalogue, in its order, whether or not the entities fit them. Capture must be installed.
///
/// A table that was renamed is the one that its triggers are on.
///
/// # Errors
/// The source's.
pub async fn standing(client: &Client, catalogue: &Catalogue) -> Result<Vec<Standing>> {
    let mut all = Vec::with_capacity(catalogue.entities().len());
    for entity in catalogue.entities() {
        all.push(stands(client, entity).await?);
    }
    Ok(all)
}

/// How the table of one entity stands.
///
/// # Errors
/// The source's.
pub(crate) async fn stands(client: &Client, entity: &Entity) -> Result<Standing> {
    let operation = naming(entity);
    let failed = |error| Error::postgres(&operation, error);
    let mut renamed = false;
    let mut found = client.query_opt(FIND, &[&entity.table]).await.map_err(failed)?;
    if found.is_none() {
        found = client
            .query_opt(FIND_CAPTURED, &[&entity.name])
            .await
            .map_err(failed)?;
        renamed = found.is_some();
    }
    let Some(row) = found else {
        return Ok(Standing {
            table: Table::gone(),
            unfit: Some(missing(entity)),
            renamed: false,
        });
    };
    let table = match read(client, entity, &row).await {
        Ok(table) => table,
        Err(error) if error.kind() == Kind::Config => {
            return Ok(Standing {
                table: Table::gone(),
                unfit: Some(error),
                renamed: false,
            });
        }
        Err(error) => return Err(error),
    };
    let unfit = match check_columns(entity, &table) {
        Ok(()) => check_key(client, entity, &table).await,
        unfit => unfit,
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
    Ok(Standing {
        table,
        unfit,
        renamed,
    })
}

fn naming(entity: &Entity) -> String {
    format!("read table {} of entity {}", entity.table, entity.name)
}

fn missing(entity: &Entity) -> Error {
    Error::config(naming(entity), "the database has no such table")
        .remedy("create it, correct the entity's table, or take the entity out of the catalogue; then run `cloud-sync init`")
}

async fn table(client: &Client, entity: &Entity) -> Result<Table> {
    let found = client
        .query_opt(FIND, &[&entity.table])
        .await
        .map_err(|error| Error::postgres(naming(entity), error))?;
    match found {
        Some(row) => read(client, entity, &row).await,
        None => Err(missing(entity)),
    }
}

async fn read(client: &Client, entity: &Entity, row: &Row) -> Result<Table> {
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
    let columns = client
        .query(COLUMNS, &[&oid])
        .await
        .map_err(failed)?
        .iter()
        .map(|row| {
            let (typtype, element, schema): (&str, &str, &str) = (row.get(4), row.get(5), row.get(6));
            let plain = typtype == "b" && matches!(element, "" | "b") && schema == "pg_catalog";
            Column {
                name: row.get(0),
                wire_type: if plain { row.get(1) } else { "text".to_owned() },
                sql_type: row.get(2),
                nullable: row.get(3),
            }
        })
        .collect();
    Ok(Table {
        oid,
        sql_name: row.get(1),
        partitioned: kind == "p",
        columns,
    })
}

fn check_columns(entity: &Entity, table: &Table) -> Result<()> {
    let need = entity
        .key
        .iter()
        .map(|name| (name, "key"))
        .chain(entity.window.iter().map(|window| (&window.column, "window")))
        .chain(entity.exclude.iter().map(|name| (name, "exclude")))
        .chain(entity.redact.iter().map(|name| (name, "redact")))
        .chain(entity.files.iter().map(|file| (&file.column, "files")));
    for (name, what) in need {
        if table.column(name).is_none() {
            let near = table
                .columns
                .iter()
                .max_by(|a, b| strsim::jaro(&a.name, name).total_cmp(&strsim::jaro(&b.name, name)));
            let hint = near.map_or(String::new(), |column| format!(" (is {} meant?)", column.name));
            return Err(Error::config(
                format!("use entity {}", entity.name),
                format!(
                    "table {} has no column {name}, which the entity names under {what}",
                    entity.table
                ),
            )
            .remedy(format!("add the column, or correct {what} of the entity{hint}")));
        }
    }
    Ok(())
}

async fn check_key(client: &Client, entity: &Entity, table: &Table) -> Result<()> {
    let operation = format!("use entity {}", entity.name);
    let keys = client
        .query(UNIQUE_KEYS, &[&table.oid])
        .await
        .map_err(|error| Error::postgres(&operation, error))?;
    let mut wanted = entity.key.clone();
    wanted.sort_unstable();
    let unique = keys.iter().any(|row| {
        let mut columns: Vec<String> = row.get(1);
        columns.sort_unstable();
        columns == wanted
    });
    if !unique {
        let primary = keys
            .iter()
            .find(|row| row.get(0))
            .map(|row| row.get::<_, Vec<String>>(1).join(", "));
        let remedy = match primary {
            Some(columns) => format!("its primary key is ({columns}): name that as the entity's key"),
            None => {
                "add a primary key to the table: without one, no change can be told from another".to_owned()
            }
        };
        return Err(Error::config(
            operation,
            format!(
                "table {} has no primary or unique key on ({})",
                entity.table,
                entity.key.join(", ")
            ),
        )
        .remedy(remedy));
    }
    if let Some(name) = entity
        .key
        .iter()
        .find(|name| table.column(name).is_some_and(|column| column.nullable))
    {
        return Err(Error::config(
            operation,
            format!("key column {name} of table {} may be null", entity.table),
        )
        .remedy(format!(
            "alter table {} alter column {name} set not null",
            entity.table
        )));
    }
    Ok(())
}

async fn check_order(client: &Client, catalogue: &Catalogue, tables: &[Table]) -> Result<()> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let place: HashMap<u32, usize> = oids.iter().enumerate().map(|(nth, &oid)| (oid, nth)).collect();
    let rows = client
        .query(REFERENCES, &[&oids])
        .await
        .map_err(|error| Error::postgres("read the foreign keys of the catalogue's tables", error))?;
    let mut parents: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for row in &rows {
        let (child, parent) = (place[&row.get::<_, u32>(0)], place[&row.get::<_, u32>(1)]);
        parents.entry(child).or_default().push(parent);
    }
    let name = |place: usize| catalogue.entities()[place].name.as_str();
    if let Some(circle) = circle(&parents) {
        let names: Vec<_> = circle.iter().map(|&place| name(place)).collect();
        return Err(Error::config(
            "order the catalogue",
            format!("entities refer to each other in a circle: {}", names.join(" -> ")),
        )
        .remedy("no order has parents before children: take one of them out of the catalogue, or drop one foreign key"));
    }
    for (&child, parents) in &parents {
        if let Some(&parent) = parents.iter().find(|&&parent| parent > child) {
            return Err(Error::config(
                "order the catalogue",
                format!(
                    "entity {} refers to {}, which comes after it",
                    name(child),
                    name(parent)
                ),
            )
            .remedy(format!("list {} before {}", name(parent), name(child))));
        }
    }
    Ok(())
}

/// A circle of references, its first member repeated at the end; none where there is an order.
fn circle(parents: &BTreeMap<usize, Vec<usize>>) -> Option<Vec<usize>> {
    fn visit(
        at: usize,
        parents: &BTreeMap<usize, Vec<usize>>,
        path: &mut Vec<usize>,
        done: &mut Vec<usize>,
    ) -> Option<Vec<usize>> {
        if let Some(start) = path.iter().position(|&place| place == at) {
            let mut circle = path[start..].to_vec();
            circle.push(at);
            return Some(circle);
        }
        if done.contains(&at) {
            return None;
        }
        path.push(at);
        for &parent in parents.get(&at).into_iter().flatten() {
            if let Some(circle) = visit(parent, parents, path, done) {
                return Some(circle);
            }
        }
        path.pop();
        done.push(at);
        None
    }
    let mut done = Vec::new();
    parents
        .keys()
        .find_map(|&start| visit(start, parents, &mut Vec::new(), &mut done))
}

const FINGERPRINT: &str = "\
select coalesce(sum(hashtextextended(attrelid || '.' || attnum || '.' || attname || '.' || atttypid || '.' || atttypmod || '.' || attnotnull, 0)), 0)::text
from pg_attribute where attrelid = any($1) and attnum > 0 and not attisdropped";

/// Prepares [`fingerprint`] on a session: it is asked for with each batch.
///
/// # Errors
/// The source's.
pub async fn prepare_fingerprint(client: &Client) -> Result<Statement> {
    client
        .prepare(FINGERPRINT)
        .await
        .map_err(|error| Error::postgres("prepare to read columns", error))
}

/// A number that changes whenever a column of one of the tables is added, dropped, renamed or changes its type.
///
/// # Errors
/// The source's.
pub async fn fingerprint(client: &Client, prepared: &Statement, oids: &[u32]) -> Result<String> {
    let row = client
        .query_one(prepared, &[&oids])
        .await
        .map_err(|error| Error::postgres("read the columns of the catalogue's tables", error))?;
    Ok(row.get(0))
}

/// The error of a table that is gone while it is replicated.
pub(crate) fn withheld(entity: &Entity) -> Error {
    Error::new(
        Kind::Config,
        format!("replicate entity {}", entity.name),
        format!(
            "a column that must not leave the site ({}) is no longer in table {}",
            entity.exclude.join(", "),
            entity.table
        ),
    )
    .remedy("it may have been renamed: correct the entity's exclude, then run `cloud-sync init`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_and_orders_are_not() {
        let of = |pairs: &[(usize, usize)]| {
            let mut parents: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for &(child, parent) in pairs {
                parents.entry(child).or_default().push(parent);
            }
            circle(&parents)
        };
        assert_eq!(of(&[(1, 0), (2, 0), (2, 1)]), None);
        assert_eq!(of(&[(0, 1), (1, 2), (2, 0)]), Some(vec![0, 1, 2, 0]));
    }
}
