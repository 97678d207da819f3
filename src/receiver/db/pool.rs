//! The receiver's own PostgreSQL: sqlx's pool and the migrations.

use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

use crate::error::{Error, Kind, Result, chain};

/// The migrations, without sqlx's own lock: it is an advisory one, which any role could hold for ever.
fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!("migrations/receiver");
    migrations.set_locking(false);
    migrations
}

/// Connections in the pool.
pub(crate) const CONNECTIONS: u32 = 16;

/// Statements kept prepared on a connection: a few for each entity.
const STATEMENTS: usize = 500;

const CONNECT: &str = "connect the receiver's database";

/// How a URL asks to connect, with the settings of every session of the receiver.
pub(crate) fn connect_options(url: &str) -> Result<PgConnectOptions> {
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
    Ok(options)
}

/// Connects, and brings the schema `cloud_meta` up to date.
pub(crate) async fn open(options: PgConnectOptions) -> Result<PgPool> {
    let unreachable = |error: sqlx::Error| {
        Error::new(Kind::Local, CONNECT, chain(&error))
            .remedy("check receiver.database_url, and that the server runs")
    };
    let mut connection = options.clone().connect().await.map_err(unreachable)?;
    migrate(&mut connection).await?;
    connection.close().await.map_err(unreachable)?;
    PgPoolOptions::new()
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
        .map_err(unreachable)
}

/// The key that signs the URLs of files: 32 bytes, the same for all receivers on one database.
pub(crate) async fn url_key(pool: &PgPool) -> Result<[u8; 32]> {
    const READ: &str = "read the key of files' URLs";
    let key: Vec<u8> = sqlx::query_scalar("select url_key from cloud_meta.receiver")
        .fetch_one(pool)
        .await
        .map_err(|error| Error::new(Kind::Local, READ, chain(&error)))?;
    key.try_into().map_err(|_| {
        Error::new(Kind::Local, READ, "it has not 32 bytes")
            .remedy("set cloud_meta.receiver.url_key to 32 random bytes; URLs that were made before end then")
    })
}

const MIGRATE: &str = "migrate the receiver's database";

/// Whether the tables are those of a receiver that kept positions instead of versions.
const IS_OLD: &str = "select exists (select from pg_attribute \
     where attrelid = to_regclass('cloud_meta.sources') and attname = 'position' and not attisdropped)";

/// What must exist before the first migration: a table to lock, which no other role may lock.
const BEFORE: &str =
    "create schema if not exists cloud_meta; create table if not exists cloud_meta.migrating ()";

/// Runs the migrations under a lock, as two receivers may start at once; sqlx's own table is in `cloud_meta`.
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
        "set receiver.database_url to a fresh database, then run `cloud-sync sync --force` on each site \
         to fill it",
    )
}
