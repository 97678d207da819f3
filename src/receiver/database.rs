//! The receiver's own PostgreSQL: the pool, the migrations, the locks, and what an error of it means.

use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

use super::writers::Writers;
use crate::error::{Error, Kind, Result, chain};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/receiver");

/// Connections in the pool, which serves all but changes.
pub(super) const CONNECTIONS: u32 = 16;

/// Statements kept prepared on a connection: a few an entity.
pub(super) const STATEMENTS: usize = 500;

const CONNECT: &str = "connect the receiver's database";

/// Connects, and brings schema `cloud_meta` up to date.
pub(super) async fn open(url: &str) -> Result<(PgPool, Writers)> {
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
            ("search_path", "pg_catalog"),
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
    let writers = Writers::new(&options);
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

/// Runs the migrations under a lock, as two receivers may start at once; sqlx's own table lies in `cloud_meta`.
async fn migrate(connection: &mut PgConnection) -> Result<()> {
    let failed = |cause: String| {
        Error::new(Kind::Local, MIGRATE, cause)
            .remedy("the receiver's role must be allowed to create schemas in its database")
    };
    let lock = format!("select pg_advisory_lock({})", lock_number("migrate", ""));
    let run = async |connection: &mut PgConnection, step: String| {
        sqlx::raw_sql(AssertSqlSafe(step))
            .execute(connection)
            .await
            .map_err(|error| failed(chain(&error)))
    };
    run(connection, lock).await?;
    let is_old: bool = sqlx::query_scalar(IS_OLD)
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| failed(chain(&error)))?;
    if is_old {
        return Err(other_tables());
    }
    run(connection, "create schema if not exists cloud_meta".to_owned()).await?;
    run(connection, "set search_path to cloud_meta".to_owned()).await?;
    MIGRATIONS
        .run_direct(None, &mut *connection, false)
        .await
        .map_err(|error| match error {
            MigrateError::VersionMismatch(_) => other_tables(),
            error => failed(chain(&error)),
        })
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

/// The number of an advisory lock.
fn lock_number(class: &str, name: &str) -> i64 {
    let digest = blake3::hash(format!("cloud-sync receiver\n{class}\n{name}").as_bytes());
    let mut number = [0; 8];
    number.copy_from_slice(&digest.as_bytes()[..8]);
    i64::from_be_bytes(number)
}

/// The SQL that holds everyone else's writing of this site back until its transaction ends.
pub(super) fn site_lock(site: &str) -> String {
    format!("select pg_advisory_xact_lock({})", lock_number("site", site))
}

/// Holds everyone else's writing of this site back until the transaction ends.
pub(super) async fn lock_site(connection: &mut PgConnection, site: &str) -> std::result::Result<(), Trouble> {
    lock(connection, lock_number("site", site)).await
}

/// Holds everyone else's changing of tables back until the transaction ends.
pub(super) async fn lock_tables(connection: &mut PgConnection) -> std::result::Result<(), Trouble> {
    lock(connection, lock_number("tables", "")).await
}

/// Takes the lock, and pins how the transaction's statements are planned: by index, once for all. They are prepared
/// while a table is still empty, when a scan of it looks cheap, and they must not stay so while it fills.
async fn lock(connection: &mut PgConnection, number: i64) -> std::result::Result<(), Trouble> {
    sqlx::query(include_str!("../../sql/receiver/lock.sql"))
        .bind(number)
        .execute(connection)
        .await?;
    Ok(())
}

/// What an error of the database means for a request. None of it carries a row's values.
#[derive(Debug)]
pub(super) enum Trouble {
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

impl From<sqlx::Error> for Trouble {
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
            Standing::Transient => Self::Transient(format!("{state} {}", database.message())),
            Standing::Data => {
                let postgres = database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
                let column = postgres.and_then(|error| error.column().or(error.constraint()));
                Self::Data {
                    column: column.map(str::to_owned),
                    state,
                }
            }
            Standing::Fault if state.starts_with("42") => {
                Self::Fault(format!("{state} {}", database.message()))
            }
            Standing::Fault => Self::Fault(format!("SQLSTATE {state}")),
        }
    }
}

enum Standing {
    Transient,
    Data,
    Fault,
}

/// Source: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".
fn standing(state: &str) -> Standing {
    match state {
        "40001" | "40P01" | "55P03" => Standing::Transient,
        // A value of a type that does not go into the column; two rows of one key in one statement.
        "42804" | "42846" | "21000" => Standing::Data,
        _ => match state.get(..2).unwrap_or_default() {
            "08" | "53" | "57" | "58" => Standing::Transient,
            "22" | "23" | "54" | "0A" => Standing::Data,
            _ => Standing::Fault,
        },
    }
}

/// What a data error's SQLSTATE says, without any value.
pub(super) fn condition(state: &str) -> &'static str {
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
