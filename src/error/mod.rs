//! The error type of the whole program: which operation failed, on what, why, and the remedy.
//!
//! What always holds: a message reads `cannot OPERATION: CAUSE`. The remedy is apart from it, and follows
//! after a semicolon only if an error is one line of text. No message contains a row's values, a credential
//! or a signed URL. Functions of [`Error`] decide what happens after an error: [`Error::class`] says how it
//! is retried, [`Error::scope`] how far it reaches. [`Code`] is its short name, which `cloud-sync explain`
//! explains.

mod code;

use std::fmt;

pub use code::Code;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Where an error comes from. It decides the exit code and [`Error::class`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Wrong usage or configuration, a wrong catalogue included. Exit code 2.
    Config,
    /// The source database cannot be reached, or the connection was interrupted. Exit code 3.
    SourceUnreachable,
    /// The source database answered with an error. Exit code 3.
    Source,
    /// The source is not the one that the checkpoint belongs to. Exit code 3.
    Identity,
    /// The cloud cannot be reached, timed out, or answered 408, 425, 429 or 5xx. Exit code 4.
    CloudUnreachable,
    /// The cloud refused the key (401, 403). Exit code 4.
    CloudAuth,
    /// The cloud refused one request for good (any other 4xx). Exit code 1.
    CloudRefused,
    /// The cloud's answer breaks the wire contract. Exit code 4.
    CloudProtocol,
    /// The local checkpoint store. Exit code 1.
    Store,
    /// A media file. Exit code 1.
    Media,
    /// Anything else on this machine: a file, a port, a process. Exit code 1.
    Local,
}

/// What to do after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Retry with back-off: the cause is expected to pass.
    Retry,
    /// Stop this lane, keep capturing, and report it to the operator; retry slowly.
    Operator,
    /// Stop the program.
    Fatal,
}

/// How far an error reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One request, row or file. Everything else continues.
    Request,
    /// One entity. All others continue.
    Entity,
    /// The drain, or the uploads. The other one continues, and so does capture.
    Lane,
    /// The program, or the command.
    Program,
}

impl Scope {
    /// Its name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Entity => "entity",
            Self::Lane => "lane",
            Self::Program => "program",
        }
    }
}

/// An error: the operation with its subject, the cause, and the remedy.
pub struct Error(Box<ErrorInner>);

struct ErrorInner {
    kind: Kind,
    code: Option<Code>,
    operation: String,
    cause: String,
    remedy: Option<String>,
    sqlstate: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind`: `operation` (for instance `read table tbl_room`) failed because of `cause`.
    pub fn new(kind: Kind, operation: impl Into<String>, cause: impl Into<String>) -> Self {
        Self(Box::new(ErrorInner {
            kind,
            code: None,
            operation: operation.into(),
            cause: cause.into(),
            remedy: None,
            sqlstate: None,
            source: None,
        }))
    }

    /// Makes a configuration error.
    pub fn config(operation: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(Kind::Config, operation, cause)
    }

    /// Makes one configuration error of several faults, which are all in its text; the fault itself if there
    /// is one only.
    pub(crate) fn all_of(operation: &str, mut faults: Vec<Self>) -> Self {
        if faults.len() == 1
            && let Some(fault) = faults.pop()
        {
            return fault;
        }
        let lines: Vec<String> = faults.iter().map(|fault| format!("\n  - {fault}")).collect();
        Self::config(operation, format!("{} faults:{}", faults.len(), lines.concat()))
    }

    /// Makes an error of this machine's files, ports or processes.
    pub fn local(operation: impl Into<String>, source: std::io::Error) -> Self {
        let mut error = Self::new(Kind::Local, operation, source.to_string());
        error.0.source = Some(Box::new(source));
        error
    }

    /// Sets its code, if that says more than its kind does.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.0.code = Some(code);
        self
    }

    /// Sets the error that caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Adds what the user should do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Makes an error from a tokio-postgres error of the source database.
    pub fn postgres(operation: impl Into<String>, source: tokio_postgres::Error) -> Self {
        let (kind, cause, state) = match source.as_db_error() {
            Some(db) => (
                kind_of_state(db.code().code()),
                db.message().to_owned(),
                Some(db.code().code().to_owned()),
            ),
            None => (Kind::SourceUnreachable, chain(&source), None),
        };
        let mut error = Self::new(kind, operation, cause);
        error.0.sqlstate = state;
        error.0.source = Some(Box::new(source));
        error
    }

    /// Makes an error from a sqlx error of the source database.
    pub fn sqlx(operation: impl Into<String>, source: sqlx::Error) -> Self {
        let (kind, cause, state) = match &source {
            sqlx::Error::Database(db) => (
                db.code()
                    .map_or(Kind::Source, |code| kind_of_state(code.as_ref())),
                db.message().to_owned(),
                db.code().map(|code| code.into_owned()),
            ),
            other => (Kind::SourceUnreachable, chain(other), None),
        };
        let mut error = Self::new(kind, operation, cause);
        error.0.sqlstate = state;
        error.0.source = Some(Box::new(source));
        error
    }

    /// Where it comes from.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The operation that failed, with its subject.
    pub fn operation(&self) -> &str {
        &self.0.operation
    }

    /// Why it failed, without the operation and the remedy.
    pub fn cause(&self) -> &str {
        &self.0.cause
    }

    /// What the user should do, if that is known.
    pub fn remedy_text(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// What failed and why, without the remedy.
    pub fn headline(&self) -> String {
        format!("cannot {}: {}", self.0.operation, self.0.cause)
    }

    /// Its code.
    pub fn code(&self) -> Code {
        if let Some(code) = self.0.code {
            return code;
        }
        match (self.0.kind, self.sqlstate().unwrap_or_default()) {
            (_, state) if state.starts_with("28") => Code::SourceLogin,
            (_, "3D000") => Code::SourceNoDatabase,
            (_, "42501") => Code::SourceNoRight,
            (_, "55P03" | "57014" | "40P01") => Code::SourceLocked,
            (_, "53100" | "53200") => Code::SourceFull,
            (Kind::Config, _) => Code::Usage,
            (Kind::SourceUnreachable, _) => Code::SourceUnreachable,
            (Kind::Source, _) => Code::SourceFailed,
            (Kind::Identity, _) => Code::OtherOutbox,
            (Kind::CloudUnreachable, _) => Code::CloudUnreachable,
            (Kind::CloudAuth, _) => Code::CloudKey,
            (Kind::CloudRefused, _) => Code::CloudRefused,
            (Kind::CloudProtocol, _) => Code::CloudProtocol,
            (Kind::Store, _) => Code::StoreFailed,
            (Kind::Media, _) => Code::MediaFailed,
            (Kind::Local, _) => Code::LocalFailed,
        }
    }

    /// How far it reaches.
    pub fn scope(&self) -> Scope {
        match self.0.kind {
            _ if matches!(
                self.0.code,
                Some(Code::EntityUnfit | Code::Parked | Code::CaptureGap)
            ) =>
            {
                Scope::Entity
            }
            Kind::CloudRefused | Kind::Media => Scope::Request,
            Kind::SourceUnreachable
            | Kind::Source
            | Kind::CloudUnreachable
            | Kind::CloudAuth
            | Kind::CloudProtocol
            | Kind::Store => Scope::Lane,
            Kind::Config | Kind::Identity | Kind::Local => Scope::Program,
        }
    }

    /// The SQLSTATE, if a database answered with the error.
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }

    /// What to do after this error.
    pub fn class(&self) -> Class {
        match self.0.kind {
            Kind::SourceUnreachable | Kind::CloudUnreachable | Kind::Media => Class::Retry,
            Kind::Source => match self.sqlstate() {
                // A deadlock, a serialization failure, a cancelled or timed-out statement, no lock within
                // lock_timeout.
                Some("40P01" | "40001" | "57014" | "55P03") => Class::Retry,
                _ => Class::Operator,
            },
            Kind::CloudAuth | Kind::CloudRefused | Kind::CloudProtocol | Kind::Store | Kind::Local => {
                Class::Operator
            }
            Kind::Config | Kind::Identity => Class::Fatal,
        }
    }

    /// The process's exit code for this error: see docs/guide/operate.md.
    pub fn exit_code(&self) -> u8 {
        match self.0.kind {
            Kind::Config => 2,
            Kind::SourceUnreachable | Kind::Source | Kind::Identity => 3,
            Kind::CloudUnreachable | Kind::CloudAuth | Kind::CloudProtocol => 4,
            Kind::CloudRefused | Kind::Store | Kind::Media | Kind::Local => 1,
        }
    }
}

/// The kind of an SQLSTATE. Classes 08, 53, 57P and 58 mean that the server is unreachable or overloaded; any
/// other means that it answered with an error.
fn kind_of_state(state: &str) -> Kind {
    if state.starts_with("08")
        || state.starts_with("53")
        || state.starts_with("57P")
        || state.starts_with("58")
        || state.starts_with("25P0")
    {
        Kind::SourceUnreachable
    } else {
        Kind::Source
    }
}

/// The messages of an error and of its sources, joined.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let message = cause.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        next = cause.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.0.operation, self.0.cause)?;
        if let Some(remedy) = &self.0.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("code", &self.code())
            .field("operation", &self.0.operation)
            .field("cause", &self.0.cause)
            .field("remedy", &self.0.remedy)
            .field("sqlstate", &self.0.sqlstate)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_and_exit_code_follow_from_the_kind() {
        for (kind, class, code) in [
            (Kind::Config, Class::Fatal, 2),
            (Kind::SourceUnreachable, Class::Retry, 3),
            (Kind::Source, Class::Operator, 3),
            (Kind::Identity, Class::Fatal, 3),
            (Kind::CloudUnreachable, Class::Retry, 4),
            (Kind::CloudAuth, Class::Operator, 4),
            (Kind::CloudRefused, Class::Operator, 1),
            (Kind::CloudProtocol, Class::Operator, 4),
            (Kind::Store, Class::Operator, 1),
            (Kind::Media, Class::Retry, 1),
        ] {
            let error = Error::new(kind, "try", "it broke");
            assert_eq!((error.class(), error.exit_code()), (class, code), "{kind:?}");
        }
    }

    #[test]
    fn a_code_follows_from_the_kind_unless_it_is_named() {
        let error = Error::config("read entity rooms", "it is wrong");
        assert_eq!((error.code(), error.scope()), (Code::Usage, Scope::Program));
        let error = error.with_code(Code::EntityUnfit);
        assert_eq!((error.code(), error.scope()), (Code::EntityUnfit, Scope::Entity));
    }

    #[test]
    fn message_names_operation_cause_and_remedy() {
        let error = Error::config("read entity rooms", "table tbl_room does not exist")
            .remedy("create it, or take the entity out of the catalogue");
        assert_eq!(
            error.to_string(),
            "cannot read entity rooms: table tbl_room does not exist; create it, or take the entity out of \
             the catalogue"
        );
    }
}
