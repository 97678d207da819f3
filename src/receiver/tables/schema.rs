//! The registry of tables: which columns an entity has in the cloud, and `PUT /schema/{path}`, which changes
//! that.
//!
//! Always holds: each entity has one table, which all sites share. It has the union of the columns that they
//! declare, each wide enough for all of them. Nothing is ever dropped. A table's `version` rises with each
//! change of it; a request that uses a remembered table compares the version within its own transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::receiver::Shared;
use crate::receiver::db::apply_session::ApplySession;
use crate::receiver::db::db_error::DbError;
use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::auth::AuthenticatedSite;
use crate::receiver::tables::column_type::{ColumnType, TypeMerge};
use crate::wire::json::syntax_error_place;
use crate::wire::limits::{MAX_COLUMNS, MAX_NAME_BYTES, MAX_PATH_BYTES};
use crate::wire::paths::{self, RESERVED_COLUMNS};
use crate::wire::{ErrorCode, SchemaDeclaration, SuccessAnswer, headers};

const REGISTRY: &str = "select * from cloud_meta.entities where entity = $1";

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
    pub(crate) column_type: ColumnType,
}

impl TableColumn {
    fn new(name: &str, column_type: ColumnType) -> Self {
        Self {
            name: name.to_owned(),
            quoted: quoted(name),
            member: format!("{}:", Value::from(name)),
            column_type,
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
    /// The indexes of the key columns, in the key's order.
    pub(crate) key: Vec<usize>,
    pub(crate) version: i64,
    index_of: HashMap<String, usize>,
}

impl EntityTable {
    /// A row of the registry.
    fn of(row: &Row) -> std::result::Result<Self, DbError> {
        let entity: String = row.try_get("entity")?;
        let names: Vec<String> = row.try_get("column_names")?;
        let types: Vec<String> = row.try_get("column_types")?;
        let keys: Vec<String> = row.try_get("key_columns")?;
        let columns: Vec<TableColumn> = names
            .iter()
            .zip(&types)
            .map(|(name, declared)| TableColumn::new(name, ColumnType::declared(declared)))
            .collect();
        let index_of: HashMap<String, usize> = names
            .into_iter()
            .enumerate()
            .map(|(column_index, name)| (name, column_index))
            .collect();
        let key = keys
            .iter()
            .map(|name| index_of.get(name).copied())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                DbError::fault(format!(
                    "the registry of {entity} names a key column that it does not have"
                ))
            })?;
        Ok(Self {
            quoted: table_name(&entity),
            entity,
            columns,
            key,
            version: row.try_get("version")?,
            index_of,
        })
    }

    /// The table as it is registered now; `None` if it is not.
    async fn registered(
        session: &mut ApplySession,
        entity: &str,
    ) -> std::result::Result<Option<Self>, DbError> {
        let registry = session.statement(REGISTRY, &[Type::TEXT]).await?;
        let row = session.client().query_opt(&registry, &[&entity]).await?;
        row.map(|row| Self::of(&row)).transpose()
    }

    /// The index of a column.
    pub(crate) fn column_index(&self, name: &str) -> Option<usize> {
        self.index_of.get(name).copied()
    }
}

fn table_name(entity: &str) -> String {
    format!("cloud.{}", quoted(entity))
}

/// The tables as they were last read, by entity.
#[derive(Default)]
pub(crate) struct TableCache(Mutex<HashMap<String, Arc<EntityTable>>>);

impl TableCache {
    /// The entity's table as it was last read. It may have a newer version by now.
    pub(crate) fn known(&self, entity: &str) -> Option<Arc<EntityTable>> {
        self.lock().get(entity).cloned()
    }

    /// The entity's table in this version: as it was last read, else read now.
    pub(crate) async fn get(
        &self,
        session: &mut ApplySession,
        entity: &str,
        version: i64,
    ) -> std::result::Result<Arc<EntityTable>, DbError> {
        let known = self.lock().get(entity).cloned();
        if let Some(table) = known.filter(|table| table.version == version) {
            return Ok(table);
        }
        let table = EntityTable::registered(session, entity).await?;
        let table = Arc::new(table.ok_or_else(|| DbError::fault(format!("the registry has no {entity}")))?);
        self.lock().insert(entity.to_owned(), Arc::clone(&table));
        Ok(table)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<EntityTable>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a site has declared at a path.
pub(crate) struct PathOwner {
    pub(crate) table: Arc<EntityTable>,
    /// The column by which `?days=` measures the age of rows.
    pub(crate) retention: Option<String>,
}

/// Finds what a site has declared at a path.
pub(crate) async fn at_path(
    shared: &Shared,
    session: &mut ApplySession,
    site: &str,
    path: &str,
) -> ApiResult<PathOwner> {
    let declared = session
        .statement(
            "select s.entity, s.window_column, e.version from cloud_meta.schemas s \
             join cloud_meta.entities e using (entity) where s.site = $1 and s.path = $2",
            &[Type::TEXT, Type::TEXT],
        )
        .await?;
    let row = session
        .client()
        .query_opt(&declared, &[&site, &path])
        .await?
        .ok_or_else(|| ApiError::unknown_path(path))?;
    let entity: &str = row.try_get("entity")?;
    let table = shared
        .tables
        .get(session, entity, row.try_get("version")?)
        .await?;
    Ok(PathOwner {
        table,
        retention: row.try_get("window_column")?,
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
                "the column {} is declared twice",
                column.name
            )));
        }
        columns.push(TableColumn::new(
            &column.name,
            ColumnType::declared(&column.type_name),
        ));
    }
    let type_of = |name: &String| {
        columns
            .iter()
            .find(|column| column.name == *name)
            .map(|column| column.column_type)
            .ok_or_else(|| unprocessable(format!("{name} is not among the columns")))
    };
    if declared.key.is_empty() {
        return Err(unprocessable("the key has no column".to_owned()));
    }
    for (key_index, name) in declared.key.iter().enumerate() {
        let column_type = type_of(name)?;
        if declared.key[..key_index].contains(name) || column_type.is("json") {
            return Err(unprocessable(format!("{name} cannot be a key column")));
        }
    }
    if let Some(name) = &declared.window
        && !type_of(name)?.is_time()
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

/// `PUT /schema/{path}`: creates or extends the entity's table, and registers at which path the site has it.
/// With `X-Source-Id` the site's entity belongs to that source from then on: two databases that send rows of
/// one entity of one site would overwrite each other's rows.
pub(crate) async fn put(
    State(shared): State<Arc<Shared>>,
    AuthenticatedSite(site, share): AuthenticatedSite,
    Path(path): Path<String>,
    request: Request,
) -> ApiResult<Json<SuccessAnswer>> {
    let (parts, body) = request.into_parts();
    let source = headers::source_id(&parts.headers)?;
    let body = shared.memory.of(&share).read(&parts.headers, body).await?;
    let declared: SchemaDeclaration = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::malformed(format!(
            "the body is not a schema: {}",
            syntax_error_place(&error)
        ))
    })?;
    let columns = check_declaration(&declared, &path)?;
    let _connection = share.connection().await?;
    let mut connection = shared.apply_pool.take().await?;
    connection.begin_for_tables().await?;
    let declaration = Declaration {
        site: &site,
        path: &path,
        source,
        schema: &declared,
        columns: &columns,
    };
    match declaration.apply(&mut connection).await {
        Ok(()) => {}
        Err(refusal) => {
            connection.rollback().await?;
            shared.apply_pool.give_back(connection);
            return Err(refusal);
        }
    }
    connection.commit().await?;
    shared.apply_pool.give_back(connection);
    Ok(Json(SuccessAnswer::DONE))
}

/// What a site declares.
struct Declaration<'a> {
    site: &'a str,
    path: &'a str,
    source: Option<&'a str>,
    schema: &'a SchemaDeclaration,
    columns: &'a [TableColumn],
}

impl Declaration<'_> {
    /// Declares it, in a transaction that holds the tables' lock.
    async fn apply(&self, session: &mut ApplySession) -> ApiResult<()> {
        session
            .client()
            .batch_execute("set local lock_timeout = '5s'")
            .await?;
        self.check_owner(session).await?;
        self.extend(session).await?;
        self.register_path(session).await
    }

    /// Refuses a schema whose entity belongs to another source of the site.
    async fn check_owner(&self, session: &mut ApplySession) -> ApiResult<()> {
        let Some(source) = self.source else {
            return Ok(());
        };
        let question = session
            .statement(
                "select source_id from cloud_meta.schemas \
                 where site = $1 and entity = $2 and source_id <> $3",
                &[Type::TEXT, Type::TEXT, Type::TEXT],
            )
            .await?;
        let entity = &self.schema.entity;
        let owner = session
            .client()
            .query_opt(&question, &[&self.site, entity, &source])
            .await?;
        let Some(owner) = owner else {
            return Ok(());
        };
        let owner: &str = owner.try_get(0)?;
        Err(conflict(format!(
            "the entity {entity} of this site belongs to the source {owner}; give the entity another name, \
             or set source.source_id to {owner} if this database replaces that one"
        ))
        .with_code(ErrorCode::OtherSource))
    }

    /// Makes the table have the declared columns.
    async fn extend(&self, session: &mut ApplySession) -> ApiResult<()> {
        let entity = &self.schema.entity;
        let Some(table) = EntityTable::registered(session, entity).await? else {
            return self.create(session).await;
        };
        let key: Vec<&str> = table
            .key
            .iter()
            .map(|&column_index| table.columns[column_index].name.as_str())
            .collect();
        if key != self.schema.key {
            return Err(conflict(format!(
                "the key of {entity} is ({}) in the cloud and cannot become ({}); \
                 give the entity another name",
                key.join(", "),
                self.schema.key.join(", ")
            )));
        }
        let mut all = table.columns.clone();
        let mut steps = Vec::new();
        for column in self.columns {
            let Some(column_index) = table.column_index(&column.name) else {
                steps.push(format!(
                    "add column {} {}",
                    column.quoted,
                    column.column_type.sql()
                ));
                all.push(column.clone());
                continue;
            };
            let present = table.columns[column_index].column_type;
            match present.merge(column.column_type) {
                TypeMerge::Keep => {}
                TypeMerge::Widen(to) => {
                    let cast = present.cast(&column.quoted, to);
                    steps.push(format!(
                        "alter column {} type {} using {cast}",
                        column.quoted,
                        to.sql()
                    ));
                    all[column_index].column_type = to;
                }
                TypeMerge::Conflict => {
                    return Err(conflict(format!(
                        "the column {} of {entity} is {} in the cloud and cannot become {}; \
                         rename the column, or declare it as text",
                        column.name,
                        present.sql(),
                        column.column_type.sql()
                    )));
                }
            }
        }
        if steps.is_empty() {
            return Ok(());
        }
        check_count(all.len())?;
        let sql = format!("alter table {} {}", table.quoted, steps.join(", "));
        session.client().batch_execute(&sql).await?;
        let (names, types) = described(&all);
        let update = session
            .statement(
                "update cloud_meta.entities set column_names = $2, column_types = $3, version = version + 1 \
                 where entity = $1",
                &[Type::TEXT, Type::TEXT_ARRAY, Type::TEXT_ARRAY],
            )
            .await?;
        session
            .client()
            .execute(&update, &[entity, &names, &types])
            .await?;
        Ok(())
    }

    /// Creates the entity's table.
    async fn create(&self, session: &mut ApplySession) -> ApiResult<()> {
        let (entity, key) = (&self.schema.entity, &self.schema.key);
        let columns: String = self
            .columns
            .iter()
            .map(|column| format!(", {} {}", column.quoted, column.column_type.sql()))
            .collect();
        let key_columns: String = key.iter().map(|name| format!(", {}", quoted(name))).collect();
        let sql = format!(
            "create table {} (\"_site\" text collate \"C\" not null, \"_epoch\" bigint not null, \
             \"_version\" bigint not null{columns}, primary key (\"_site\"{key_columns}))",
            table_name(entity)
        );
        session.client().batch_execute(&sql).await.map_err(|error| {
            if error.code() == Some(&SqlState::DUPLICATE_TABLE) {
                conflict(format!(
                    "the cloud has another table named {entity}; give the entity another name"
                ))
            } else {
                error.into()
            }
        })?;
        let (names, types) = described(self.columns);
        let insert = session
            .statement(
                "insert into cloud_meta.entities (entity, key_columns, column_names, column_types) \
                 values ($1, $2, $3, $4)",
                &[Type::TEXT, Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::TEXT_ARRAY],
            )
            .await?;
        session
            .client()
            .execute(&insert, &[entity, key, &names, &types])
            .await?;
        Ok(())
    }

    /// Registers at which path the site has the entity, and to which source it belongs. Without a source the
    /// owner stays.
    async fn register_path(&self, session: &mut ApplySession) -> ApiResult<()> {
        let (entity, path) = (&self.schema.entity, self.path);
        let question = session
            .statement(
                "select entity from cloud_meta.schemas where site = $1 and path = $2 and entity <> $3",
                &[Type::TEXT, Type::TEXT, Type::TEXT],
            )
            .await?;
        let other = session
            .client()
            .query_opt(&question, &[&self.site, &path, entity])
            .await?;
        if let Some(other) = other {
            let other: &str = other.try_get(0)?;
            return Err(conflict(format!(
                "the path {path} belongs to the entity {other}; give one of them another path"
            )));
        }
        let register = session
            .statement(
                "insert into cloud_meta.schemas as s (site, entity, path, window_column, source_id) \
                 values ($1, $2, $3, $4, $5) \
                 on conflict (site, entity) do update \
                 set path = excluded.path, window_column = excluded.window_column, declared_at = now(), \
                     source_id = coalesce(excluded.source_id, s.source_id) \
                 where (s.path, s.window_column, s.source_id) is distinct from \
                     (excluded.path, excluded.window_column, coalesce(excluded.source_id, s.source_id))",
                &[Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT, Type::TEXT],
            )
            .await?;
        session
            .client()
            .execute(
                &register,
                &[&self.site, entity, &path, &self.schema.window, &self.source],
            )
            .await?;
        Ok(())
    }
}

/// The names and types of columns, for the registry.
fn described(columns: &[TableColumn]) -> (Vec<&str>, Vec<String>) {
    (
        columns.iter().map(|column| column.name.as_str()).collect(),
        columns.iter().map(|column| column.column_type.sql()).collect(),
    )
}
