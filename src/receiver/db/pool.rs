//! The receiver's own PostgreSQL: the pool, the migrations, the locks, and what an error of it means.

use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

use crate::error::{Error, Kind, Result, chain};
use crate::receiver::db::apply_pool::ApplyPool;

/// The migrations, without sqlx's own lock: it is an advisory one, which any role could hold for ever.
fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!("migrations/receiver");
    migrations.set_locking(false);
    migrations
}

/// Connections in the pool, which serves all but changes.
pub(crate) const CONNECTIONS: u32 = 16;

/// Statements kept prepared on a connection: a few an entity.
pub(crate) const STATEMENTS: usize = 500;

const CONNECT: &str = "connect the receiver's database";

/// Connects, and brings schema `cloud_meta` up to date.
pub(crate) async fn open(url: &str) -> Result<(PgPool, ApplyPool)> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| {
            Error::config(CONNECT, "its URL cannot be read")
                .remedy("write it as postgres://user:password@host:port/database")
        })?
        .application_name("cloud-sync receiver")
        .statement_cache_capacity(STATEMENTS)
        .options([
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO,MDY"),
            ("IntervalStyle", "postgres"),
            ("search_path", "pg_catalog,pg_temp"),
            ("standard_conforming_strings", "on"),
            ("lock_timeout", "30s"),
            ("statement_timeout", "5min"),
            ("idle_in_transaction_session_timeout", "1min"),
            // Compiling a batch's statement takes longer than running it.
            ("jit", "off"),
        ])
        .disable_statement_logging();
    let unreachable = |error: sqlx::Error| {
        Error::new(Kind::Local, CONNECT, chain(&error))
            .remedy("check receiver.database_url, and that the server runs")
    };
    let mut connection = options.clone().connect().await.map_err(unreachable)?;
    migrate(&mut connection).await?;
    connection.close().await.map_err(unreachable)?;
    let writers = ApplyPool::new(&options);
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(Duration::from_secs(10))
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > Duration::from_secs(2) {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_with(options)
        .await
        .map_err(unreachable)?;
    Ok((pool, writers))
}

const MIGRATE: &str = "migrate the receiver's database";

/// Whether the tables are those of the receiver that kept positions in the place of versions.
const IS_OLD: &str = "select exists (select from pg_attribute \
     where attrelid = to_regclass('cloud_meta.sources') and attname = 'position' and not attisdropped)";

/// What lies there before the first migration: a table to lock, which no other role may take.
const BEFORE: &str =
    "create schema if not exists cloud_meta; create table if not exists cloud_meta.migrating ()";

/// Runs the migrations under a lock, as two receivers may start at once; sqlx's own table lies in `cloud_meta`.
async fn migrate(connection: &mut PgConnection) -> Result<()> {
    let failed = |error: sqlx::Error| {
        Error::new(Kind::Local, MIGRATE, chain(&error))
            .remedy("the receiver's role must be allowed to create schemas in its database")
    };
    let is_old: bool = sqlx::query_scalar(IS_OLD)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    if is_old {
        return Err(other_tables());
    }
    let mut tries = 3;
    while let Err(error) = sqlx::raw_sql(BEFORE).execute(&mut *connection).await {
        tries -= 1;
        let made = error.as_database_error().and_then(|error| error.code());
        // Another receiver has made the same at the same time.
        if tries == 0 || !matches!(made.as_deref(), Some("23505" | "42P06" | "42P07" | "XX000")) {
            return Err(failed(error));
        }
    }
    let mut transaction = connection.begin().await.map_err(failed)?;
    sqlx::raw_sql(
        "lock table cloud_meta.migrating in exclusive mode; set local search_path = cloud_meta, pg_temp",
    )
    .execute(&mut *transaction)
    .await
    .map_err(failed)?;
    let migrated = migrations().run_direct(None, &mut *transaction, false).await;
    migrated.map_err(|error| match error {
        MigrateError::VersionMismatch(_) => other_tables(),
        error => Error::new(Kind::Local, MIGRATE, chain(&error)),
    })?;
    transaction.commit().await.map_err(failed)
}

/// The database's tables cannot be brought up to date.
fn other_tables() -> Error {
    Error::new(
        Kind::Local,
        MIGRATE,
        "its tables in the schema cloud_meta are another version's, and cannot be brought up to date",
    )
    .remedy(
        "set receiver.database_url to a fresh database, then run `cloud-sync sync --force` on each site to fill it",
    )
}

/// The SQL that holds everyone else's writing of this site back until its transaction ends.
pub(crate) fn site_lock(site: &str) -> String {
    let name = site_lock_name(site).replace('\'', "''");
    format!("select cloud_meta.take_lock('{name}')")
}

fn site_lock_name(site: &str) -> String {
    format!("site {site}")
}

/// Holds everyone else's writing of this site back until the transaction ends.
pub(crate) async fn lock_site(connection: &mut PgConnection, site: &str) -> std::result::Result<(), DbError> {
    lock(connection, &site_lock_name(site)).await
}

/// Holds everyone else's changing of tables back until the transaction ends.
pub(crate) async fn lock_tables(connection: &mut PgConnection) -> std::result::Result<(), DbError> {
    lock(connection, "tables").await
}

/// Takes the lock, and pins how the transaction's statements are planned: by index, once for all. They are prepared
/// while a table is still empty, when a scan of it looks cheap, and they must not stay so while it fills.
async fn lock(connection: &mut PgConnection, name: &str) -> std::result::Result<(), DbError> {
    sqlx::query(include_str!("../../../sql/receiver/lock.sql"))
        .bind(name)
        .execute(connection)
        .await?;
    Ok(())
}

/// What an error of the database means for a request. None of it carries a row's values.
#[derive(Debug)]
pub(crate) enum DbError {
    /// It is away, overloaded, or another transaction stood in the way: the same request will pass later.
    Transient(String),
    /// A row does not fit: its SQLSTATE, and the column or constraint where PostgreSQL named one.
    Data {
        /// The SQLSTATE.
        state: String,
        /// The column, else the constraint.
        column: Option<String>,
    },
    /// Anything else: the receiver or its database is not as it should be.
    Fault(String),
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = &error else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::BeginFailed
                | sqlx::Error::WorkerCrashed => Self::Transient(chain(&error)),
                other => Self::Fault(chain(&other)),
            };
        };
        let state = database.code().unwrap_or_default().into_owned();
        match standing(&state) {
            // Messages of these classes name objects and limits of the server, never values.
            SqlstateClass::Transient => Self::Transient(format!("{state} {}", database.message())),
            SqlstateClass::Data => {
                let postgres = database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
                let column = postgres.and_then(|error| error.column().or(error.constraint()));
                Self::Data {
                    column: column.map(str::to_owned),
                    state,
                }
            }
            SqlstateClass::Fault if state.starts_with("42") => {
                Self::Fault(format!("{state} {}", database.message()))
            }
            SqlstateClass::Fault => Self::Fault(format!("SQLSTATE {state}")),
        }
    }
}

enum SqlstateClass {
    Transient,
    Data,
    Fault,
}

/// Source: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".
fn standing(state: &str) -> SqlstateClass {
    match state {
        "40001" | "40P01" | "55P03" => SqlstateClass::Transient,
        // A value of a type that does not go into the column; two rows of one key in one statement.
        "42804" | "42846" | "21000" => SqlstateClass::Data,
        _ => match state.get(..2).unwrap_or_default() {
            "08" | "53" | "57" | "58" => SqlstateClass::Transient,
            "22" | "23" | "54" | "0A" => SqlstateClass::Data,
            _ => SqlstateClass::Fault,
        },
    }
}

/// What a data error's SQLSTATE says, without any value.
pub(crate) fn condition(state: &str) -> &'static str {
    match state {
        "22P02" => "a value does not have the form of its column's type",
        "22003" => "a number is out of its column's range",
        "22007" | "22008" | "22009" => "a date or time is not one, or is out of range",
        "22021" | "22P05" => "a text has a character that PostgreSQL cannot store",
        "22030" | "22032" | "22023" => "a JSON value or parameter is not valid",
        "21000" => "two changes of one request have equal keys",
        "23502" => "a value is missing",
        "23505" => "another row has the same unique value",
        _ => match state.get(..2).unwrap_or_default() {
            "22" => "a value does not fit its column",
            "23" => "a constraint of the table is violated",
            "54" => "the row exceeds a limit of PostgreSQL",
            _ => "the row does not fit its table",
        },
    }
}
