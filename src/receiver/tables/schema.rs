//! The registry of tables: which columns an entity has in the cloud, and `PUT /schema/{path}`, which makes it so.
//!
//! One table an entity, shared by all sites: it has the union of the columns that they declare, each wide enough for
//! all of them. Nothing is ever dropped. A table's `version` rises with each change of it; whoever remembers a table
//! compares the version inside its own transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::receiver::Shared;
use crate::receiver::db::pool::{self, DbError};
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;
use crate::receiver::tables::column_type::{ColumnType, TypeMerge};
use crate::wire::json::syntax_error_place;
use crate::wire::limits::{MAX_COLUMNS, MAX_NAME_BYTES, MAX_PATH_BYTES};
use crate::wire::paths::{self, RESERVED_COLUMNS};
use crate::wire::{ErrorCode, SchemaDeclaration, SuccessAnswer, headers};

/// A name as SQL takes it: in quotes, with its own quotes doubled.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A column of an entity's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableColumn {
    pub(crate) name: String,
    /// The name in quotes.
    pub(crate) quoted: String,
    /// The name as a member of a JSON object: in quotes, with its colon.
    pub(crate) member: String,
    pub(crate) of: ColumnType,
}

impl TableColumn {
    fn new(name: &str, of: ColumnType) -> Self {
        Self {
            name: name.to_owned(),
            quoted: quoted(name),
            member: format!("{}:", Value::from(name)),
            of,
        }
    }
}

/// An entity's table.
#[derive(Debug)]
pub(crate) struct EntityTable {
    pub(crate) entity: String,
    /// The table's name in SQL, with its schema.
    pub(crate) quoted: String,
    pub(crate) columns: Vec<TableColumn>,
    /// The places of the key columns, in the key's order.
    pub(crate) key: Vec<usize>,
    pub(crate) version: i64,
    places: HashMap<String, usize>,
}

impl EntityTable {
    fn of(row: &PgRow) -> std::result::Result<Self, DbError> {
        let entity: String = row.try_get("entity")?;
        let names: Vec<String> = row.try_get("column_names")?;
        let types: Vec<String> = row.try_get("column_types")?;
        let keys: Vec<String> = row.try_get("key_columns")?;
        let columns: Vec<TableColumn> = names
            .iter()
            .zip(&types)
            .map(|(name, of)| TableColumn::new(name, ColumnType::of(of)))
            .collect();
        let places: HashMap<String, usize> = names
            .into_iter()
            .enumerate()
            .map(|(place, name)| (name, place))
            .collect();
        let key = keys
            .iter()
            .map(|name| places.get(name).copied())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                DbError::Fault(format!(
                    "the registry of {entity} names a key column that it does not have"
                ))
            })?;
        Ok(Self {
            quoted: table_name(&entity),
            entity,
            columns,
            key,
            version: row.try_get("version")?,
            places,
        })
    }

    /// The place of a column.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }
}

fn table_name(entity: &str) -> String {
    format!("cloud.{}", quoted(entity))
}

/// The tables as last seen, by entity.
#[derive(Default)]
pub(crate) struct TableCache(Mutex<HashMap<String, Arc<EntityTable>>>);

impl TableCache {
    /// The entity's table as last seen. It may have become a newer version since.
    pub(crate) fn known(&self, entity: &str) -> Option<Arc<EntityTable>> {
        self.lock().get(entity).cloned()
    }

    /// The entity's table in this version: remembered, else read.
    pub(crate) async fn get(
        &self,
        connection: &mut PgConnection,
        entity: &str,
        version: i64,
    ) -> std::result::Result<Arc<EntityTable>, DbError> {
        let known = self.lock().get(entity).cloned();
        if let Some(table) = known.filter(|table| table.version == version) {
            return Ok(table);
        }
        let row = sqlx::query("select * from cloud_meta.entities where entity = $1")
            .bind(entity)
            .fetch_one(connection)
            .await?;
        let table = Arc::new(EntityTable::of(&row)?);
        self.lock().insert(entity.to_owned(), Arc::clone(&table));
        Ok(table)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<EntityTable>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What lies at a site's path.
pub(crate) struct PathOwner {
    pub(crate) table: Arc<EntityTable>,
    /// The column that `?days=` measures.
    pub(crate) window: Option<String>,
}

/// Finds what a site has declared at a path.
pub(crate) async fn at_path(
    shared: &Shared,
    connection: &mut PgConnection,
    site: &str,
    path: &str,
) -> ApiResult<PathOwner> {
    let row = sqlx::query(
        "select s.entity, s.window_column, e.version from cloud_meta.schemas s \
         join cloud_meta.entities e using (entity) where s.site = $1 and s.path = $2",
    )
    .bind(site)
    .bind(path)
    .fetch_optional(&mut *connection)
    .await?
    .ok_or_else(|| ApiError::unknown_path(path))?;
    let entity: String = row.try_get("entity")?;
    let table = shared
        .tables
        .get(connection, &entity, row.try_get("version")?)
        .await?;
    Ok(PathOwner {
        table,
        window: row.try_get("window_column")?,
    })
}

fn unprocessable(error: String) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error)
}

fn conflict(error: String) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, error)
}

/// Checks what can be checked without the registry, and returns the declared columns.
fn check_declaration(declared: &SchemaDeclaration, path: &str) -> ApiResult<Vec<TableColumn>> {
    if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains('/') || paths::is_reserved(path) {
        let path: String = path.chars().take(MAX_NAME_BYTES).collect();
        return Err(unprocessable(format!(
            "{path:?} cannot be an entity's path; give it another one"
        )));
    }
    check_name("the entity", &declared.entity)?;
    check_count(declared.columns.len())?;
    let mut columns: Vec<TableColumn> = Vec::with_capacity(declared.columns.len());
    for column in &declared.columns {
        check_name("a column", &column.name)?;
        if RESERVED_COLUMNS.contains(&column.name.as_str()) {
            return Err(unprocessable(format!(
                "the cloud has a column {} of its own; rename the column, or exclude it",
                column.name
            )));
        }
        if columns.iter().any(|other| other.name == column.name) {
            return Err(unprocessable(format!(
                "the column {} is there twice",
                column.name
            )));
        }
        columns.push(TableColumn::new(&column.name, ColumnType::of(&column.type_name)));
    }
    let of = |name: &String| {
        columns
            .iter()
            .find(|column| column.name == *name)
            .map(|column| column.of)
            .ok_or_else(|| unprocessable(format!("{name} is not among the columns")))
    };
    if declared.key.is_empty() {
        return Err(unprocessable("the key has no column".to_owned()));
    }
    for (nth, name) in declared.key.iter().enumerate() {
        let column = of(name)?;
        if declared.key[..nth].contains(name) || column.is("json") {
            return Err(unprocessable(format!("{name} cannot be a key column")));
        }
    }
    if let Some(name) = &declared.window
        && !of(name)?.is_time()
    {
        return Err(unprocessable(format!(
            "the retention column {name} is neither a date nor a timestamp; name one that is"
        )));
    }
    Ok(columns)
}

/// Checks how many columns a table would have.
fn check_count(columns: usize) -> ApiResult<()> {
    if columns <= MAX_COLUMNS {
        return Ok(());
    }
    Err(unprocessable(format!(
        "the cloud's table would have {columns} columns, of {MAX_COLUMNS} that it can have; exclude some"
    )))
}

fn check_name(what: &str, name: &str) -> ApiResult<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0') {
        return Err(unprocessable(format!(
            "{what} has an empty name, one with a zero byte, or one of more than {MAX_NAME_BYTES} bytes: {:?}",
            name.chars().take(MAX_NAME_BYTES).collect::<String>()
        )));
    }
    Ok(())
}

/// `PUT /schema/{path}`: creates or extends the entity's table, and notes where the site has it. With `X-Source-Id` the
/// site's entity belongs to that source from then on: two databases that send rows of one entity of one site would
/// overwrite each other's.
pub(crate) async fn put(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    Path(path): Path<String>,
    request: Request,
) -> ApiResult<Json<SuccessAnswer>> {
    let (parts, body) = request.into_parts();
    let source = headers::source_id(&parts.headers)?;
    let body = shared.bounds.of(&share).read(&parts.headers, body).await?;
    let declared: SchemaDeclaration = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::malformed(format!(
            "the body is not a schema: {}",
            syntax_error_place(&error)
        ))
    })?;
    let columns = check_declaration(&declared, &path)?;
    let _connection = share.connection().await?;
    let mut transaction = shared.pool.begin().await?;
    pool::lock_tables(&mut transaction).await?;
    sqlx::query("set local lock_timeout = '5s'")
        .execute(&mut *transaction)
        .await?;
    if let Some(source) = source {
        check_owner(&mut transaction, &site, &declared.entity, source).await?;
    }
    extend(&mut transaction, &declared, &columns).await?;
    note(&mut transaction, &site, &path, source, &declared).await?;
    transaction.commit().await?;
    Ok(Json(SuccessAnswer::DONE))
}

/// Refuses a schema whose entity belongs to another source of the site.
async fn check_owner(connection: &mut PgConnection, site: &str, entity: &str, source: &str) -> ApiResult<()> {
    let owner: Option<String> = sqlx::query_scalar(
        "select source_id from cloud_meta.schemas where site = $1 and entity = $2 and source_id <> $3",
    )
    .bind(site)
    .bind(entity)
    .bind(source)
    .fetch_optional(connection)
    .await?;
    match owner {
        None => Ok(()),
        Some(owner) => Err(conflict(format!(
            "the entity {entity} of this site belongs to the source {owner}; give the entity another name, or set \
             source.source_id to {owner} where this database replaces that one"
        ))
        .with_code(ErrorCode::OtherSource)),
    }
}

/// Makes the table have the declared columns.
async fn extend(
    connection: &mut PgConnection,
    declared: &SchemaDeclaration,
    columns: &[TableColumn],
) -> ApiResult<()> {
    let row = sqlx::query("select * from cloud_meta.entities where entity = $1")
        .bind(&declared.entity)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else {
        return create(connection, declared, columns).await;
    };
    let standing = EntityTable::of(&row)?;
    let key: Vec<&str> = standing
        .key
        .iter()
        .map(|&place| standing.columns[place].name.as_str())
        .collect();
    if key != declared.key {
        return Err(conflict(format!(
            "the key of {} is ({}) in the cloud and cannot become ({}); give the entity another name",
            declared.entity,
            key.join(", "),
            declared.key.join(", ")
        )));
    }
    let mut all = standing.columns.clone();
    let mut steps = Vec::new();
    for column in columns {
        let Some(place) = standing.place(&column.name) else {
            steps.push(format!("add column {} {}", column.quoted, column.of.sql()));
            all.push(column.clone());
            continue;
        };
        let have = standing.columns[place].of;
        match have.meet(column.of) {
            TypeMerge::Keep => {}
            TypeMerge::Widen(to) => {
                let cast = have.cast(&column.quoted, to);
                steps.push(format!(
                    "alter column {} type {} using {cast}",
                    column.quoted,
                    to.sql()
                ));
                all[place].of = to;
            }
            TypeMerge::Conflict => {
                return Err(conflict(format!(
                    "the column {} of {} is {} in the cloud and cannot become {}; rename the column, or declare it \
                     as text",
                    column.name,
                    declared.entity,
                    have.sql(),
                    column.of.sql()
                )));
            }
        }
    }
    if steps.is_empty() {
        return Ok(());
    }
    check_count(all.len())?;
    let sql = format!("alter table {} {}", standing.quoted, steps.join(", "));
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut *connection)
        .await?;
    let (names, types) = described(&all);
    sqlx::query(
        "update cloud_meta.entities set column_names = $2, column_types = $3, version = version + 1 \
         where entity = $1",
    )
    .bind(&declared.entity)
    .bind(names)
    .bind(types)
    .execute(connection)
    .await?;
    Ok(())
}

async fn create(
    connection: &mut PgConnection,
    declared: &SchemaDeclaration,
    columns: &[TableColumn],
) -> ApiResult<()> {
    let lines: String = columns
        .iter()
        .map(|column| format!(", {} {}", column.quoted, column.of.sql()))
        .collect();
    let key: String = declared
        .key
        .iter()
        .map(|name| format!(", {}", quoted(name)))
        .collect();
    let sql = format!(
        "create table {} (\"_site\" text collate \"C\" not null, \"_epoch\" bigint not null, \
         \"_version\" bigint not null{lines}, primary key (\"_site\"{key}))",
        table_name(&declared.entity)
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut *connection)
        .await
        .map_err(|error| {
            let taken = error
                .as_database_error()
                .and_then(|error| error.code())
                .is_some_and(|code| code == "42P07");
            if taken {
                conflict(format!(
                    "the cloud has another table named {}; give the entity another name",
                    declared.entity
                ))
            } else {
                error.into()
            }
        })?;
    let (names, types) = described(columns);
    sqlx::query(
        "insert into cloud_meta.entities (entity, key_columns, column_names, column_types) values ($1, $2, $3, $4)",
    )
    .bind(&declared.entity)
    .bind(&declared.key)
    .bind(names)
    .bind(types)
    .execute(connection)
    .await?;
    Ok(())
}

fn described(columns: &[TableColumn]) -> (Vec<&str>, Vec<String>) {
    (
        columns.iter().map(|column| column.name.as_str()).collect(),
        columns.iter().map(|column| column.of.sql()).collect(),
    )
}

/// Notes where the site has the entity, and whose it is. Without a source the owner stays.
async fn note(
    connection: &mut PgConnection,
    site: &str,
    path: &str,
    source: Option<&str>,
    declared: &SchemaDeclaration,
) -> ApiResult<()> {
    let other: Option<String> = sqlx::query_scalar(
        "select entity from cloud_meta.schemas where site = $1 and path = $2 and entity <> $3",
    )
    .bind(site)
    .bind(path)
    .bind(&declared.entity)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(other) = other {
        return Err(conflict(format!(
            "the path {path} belongs to the entity {other}; give one of them another path"
        )));
    }
    sqlx::query(
        "insert into cloud_meta.schemas as s (site, entity, path, window_column, source_id) \
         values ($1, $2, $3, $4, $5) \
         on conflict (site, entity) do update \
         set path = excluded.path, window_column = excluded.window_column, declared_at = now(), \
             source_id = coalesce(excluded.source_id, s.source_id) \
         where (s.path, s.window_column, s.source_id) is distinct from \
             (excluded.path, excluded.window_column, coalesce(excluded.source_id, s.source_id))",
    )
    .bind(site)
    .bind(&declared.entity)
    .bind(path)
    .bind(&declared.window)
    .bind(source)
    .execute(connection)
    .await?;
    Ok(())
}
