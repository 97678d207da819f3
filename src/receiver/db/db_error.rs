//! What an error of the receiver's PostgreSQL means for a request.
//!
//! Always holds: the message of a [`DbError`], and of everything that it names as its source, carries no
//! row's value. PostgreSQL's own words may: those of a data error are dropped, and only its SQLSTATE and the
//! column's name are kept.

use std::error::Error as StdError;
use std::fmt;

/// What caused an error, without any row's value.
type DbErrorSource = Box<dyn StdError + Send + Sync>;

/// An error of the database. It becomes an [`ApiError`] if it concerns the request, or a [`RejectReason`] if
/// it concerns one change.
///
/// [`ApiError`]: crate::receiver::http::api_error::ApiError
/// [`RejectReason`]: crate::receiver::rows::row_batch::RejectReason
#[derive(Debug, thiserror::Error)]
pub(crate) enum DbError {
    /// The database is away or overloaded, or another transaction was in the way: the same request will pass
    /// later.
    #[error("the database cannot be used now")]
    Transient(#[source] DbErrorSource),
    /// A row does not fit its table.
    #[error("{}", describe(sqlstate, column.as_deref()))]
    Data {
        sqlstate: String,
        /// The column, else the constraint, if PostgreSQL named one.
        column: Option<String>,
    },
    /// Anything else: the receiver or its database is not as it should be.
    #[error("cannot use the database")]
    Fault(#[source] DbErrorSource),
}

impl DbError {
    /// A transient error with a cause of ours.
    pub(crate) fn transient(cause: &str) -> Self {
        Self::Transient(cause.into())
    }

    /// A fault with a cause of ours.
    pub(crate) fn fault(cause: impl Into<String>) -> Self {
        Self::Fault(cause.into().into())
    }

    /// An error that PostgreSQL reported.
    fn reported(sqlstate: &str, message: &str, column: Option<&str>) -> Self {
        let report = |message: Option<&str>| {
            Box::new(ServerReport {
                sqlstate: sqlstate.to_owned(),
                message: message.map(str::to_owned),
            })
        };
        match SqlstateClass::of(sqlstate) {
            // Messages of these classes name objects and limits of the server, never values.
            SqlstateClass::Transient => Self::Transient(report(Some(message))),
            SqlstateClass::Data => Self::Data {
                sqlstate: sqlstate.to_owned(),
                column: column.map(str::to_owned),
            },
            SqlstateClass::Fault if sqlstate.starts_with("42") => Self::Fault(report(Some(message))),
            SqlstateClass::Fault => Self::Fault(report(None)),
        }
    }
}

impl From<tokio_postgres::Error> for DbError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(report) = error.as_db_error() {
            let column = report.column().or(report.constraint());
            return Self::reported(report.code().code(), report.message(), column);
        }
        let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
        let mut lost = error.is_closed();
        while let Some(inner) = cause {
            lost |= inner.is::<std::io::Error>();
            cause = inner.source();
        }
        if lost {
            Self::Transient(Box::new(error))
        } else {
            Self::Fault(Box::new(error))
        }
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(report) => {
                let postgres = report.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
                let column = postgres.and_then(|report| report.column().or(report.constraint()));
                Self::reported(
                    report.code().unwrap_or_default().as_ref(),
                    report.message(),
                    column,
                )
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::BeginFailed
            | sqlx::Error::WorkerCrashed => Self::Transient(Box::new(error)),
            _ => Self::Fault(Box::new(error)),
        }
    }
}

/// What PostgreSQL reported: its SQLSTATE, and its message if that cannot carry a row's value.
#[derive(Debug)]
struct ServerReport {
    sqlstate: String,
    message: Option<String>,
}

impl fmt::Display for ServerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{} {message}", self.sqlstate),
            None => write!(f, "SQLSTATE {}", self.sqlstate),
        }
    }
}

impl StdError for ServerReport {}

/// What an SQLSTATE means for a request.
enum SqlstateClass {
    Transient,
    Data,
    Fault,
}

impl SqlstateClass {
    /// Source: PostgreSQL manual, appendix A, "PostgreSQL Error Codes".
    fn of(sqlstate: &str) -> Self {
        match sqlstate {
            "40001" | "40P01" | "55P03" => Self::Transient,
            // A value of a type that the column cannot take; two rows of one key in one statement.
            "42804" | "42846" | "21000" => Self::Data,
            _ => match sqlstate.get(..2).unwrap_or_default() {
                "08" | "53" | "57" | "58" => Self::Transient,
                "22" | "23" | "54" | "0A" => Self::Data,
                _ => Self::Fault,
            },
        }
    }
}

/// A data error in words, with the column that PostgreSQL named.
pub(crate) fn describe(sqlstate: &str, column: Option<&str>) -> String {
    match column {
        Some(column) => format!("{} ({column})", condition(sqlstate)),
        None => condition(sqlstate).to_owned(),
    }
}

/// What the SQLSTATE of a data error says, without any value.
fn condition(sqlstate: &str) -> &'static str {
    match sqlstate {
        "22P02" => "a value does not have the form of its column's type",
        "22003" => "a number is out of its column's range",
        "22007" | "22008" | "22009" => "a date or time is not one, or is out of range",
        "22021" | "22P05" => "a text has a character that PostgreSQL cannot store",
        "22030" | "22032" | "22023" => "a JSON value or parameter is not valid",
        "21000" => "two changes of one request have equal keys",
        "23502" => "a value is missing",
        "23505" => "another row has the same unique value",
        _ => match sqlstate.get(..2).unwrap_or_default() {
            "22" => "a value does not fit its column",
            "23" => "a constraint of the table is violated",
            "54" => "the row exceeds a limit of PostgreSQL",
            _ => "the row does not fit its table",
        },
    }
}
