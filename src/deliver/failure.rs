//! What stopped a call: the error, and what a loop needs to know that tries again.

use std::fmt;
use std::time::Duration;

use crate::error::{Class, Error, Kind};
use crate::wire::Capability;

/// The result of a call to the cloud. `?` turns its failure into an [`Error`] in a function that returns one.
pub type CloudResult<T> = Result<T, Failure>;

/// Why a call to the cloud failed. In the drain an attempt to send also reads and writes the site's database: an
/// error of that becomes one too, and is told apart by its kind.
///
/// [`Failure::error`] says what a person must know; the rest is for the loop that tries again.
#[derive(Debug)]
pub struct Failure {
    error: Error,
    retry_after: Option<Duration>,
    status: Option<u16>,
    capability: Option<Capability>,
    interrupted: bool,
    new_term: bool,
    words: Option<String>,
    from_application: bool,
}

impl Failure {
    pub(super) fn new(kind: Kind, operation: &str, cause: impl Into<String>) -> Self {
        Self::from(Error::new(kind, operation, cause))
    }

    /// The cloud is unreachable, or its answer is transient.
    pub(super) fn unreachable(operation: &str, cause: impl Into<String>, remedy: &str) -> Self {
        Self::from(Error::new(Kind::CloudUnreachable, operation, cause).remedy(remedy))
    }

    /// The cloud answered something that the contract does not allow.
    pub(super) fn protocol(operation: &str, cause: impl Into<String>, remedy: &str) -> Self {
        Self::from(Error::new(Kind::CloudProtocol, operation, cause).remedy(remedy))
    }

    /// The cloud no longer has a call that it had listed.
    pub(super) fn capability(operation: &str, capability: Capability, status: u16) -> Self {
        let mut failure = Self::protocol(
            operation,
            format!(
                "the cloud had listed the capability {} and now answers {status}",
                capability.name()
            ),
            "ask it again for its capabilities; if it still lists this one, its server is wrong",
        );
        failure.status = Some(status);
        failure.capability = Some(capability);
        failure
    }

    /// The cloud does not take the batch under its number: what is pending must be sent under a new term.
    pub(crate) fn new_term(operation: &str, cause: impl Into<String>) -> Self {
        let mut failure = Self::unreachable(operation, cause, "it is sent again under a new term");
        failure.new_term = true;
        failure
    }

    /// The cloud answered a 2xx, and says in these words that it did not do what was asked.
    pub(super) fn failed(operation: &str, status: u16, words: String) -> Self {
        Self::unreachable(
            operation,
            format!("the cloud answered {status} and says that it failed"),
            "it is tried again; if it lasts, look at the cloud's own logs",
        )
        .with_status(status)
        .with_words(words, true)
    }

    /// The same failure with the cloud's own words, and whether they are its application's.
    pub(super) fn with_words(mut self, words: String, from_application: bool) -> Self {
        (self.words, self.from_application) = (Some(words), from_application);
        self
    }

    pub(super) fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// The same failure of a request that had begun, and was interrupted or got no answer in time.
    pub(super) fn interrupted(mut self) -> Self {
        self.interrupted = true;
        self
    }

    pub(super) fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// The error, to show and to classify.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// How long the server asked to wait before the next request: for `retry::Backoff::next`.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The cloud's own words, which may hold values of rows: they are not for the log.
    pub fn words(&self) -> Option<&str> {
        self.words.as_deref()
    }

    /// Whether it may be the fault of a row in the request: the server answers 5xx, a firewall before it 403,
    /// or either of them a 2xx that does not accept the request.
    pub fn may_be_a_rows_fault(&self) -> bool {
        self.retry_after.is_none() && matches!(self.status, Some(200..=299 | 403 | 500..=599))
    }

    /// The same, and the server's application itself says so, in words.
    pub fn is_from_application(&self) -> bool {
        let by_the_application = matches!(self.status, Some(200..=299 | 500));
        by_the_application && self.retry_after.is_none() && self.from_application
    }

    /// The same failure, when the cloud takes the key for other calls: it refuses the request, and not the
    /// key.
    pub(crate) fn not_the_key(self) -> Self {
        let status = self.status.unwrap_or(403);
        Self::unreachable(
            self.error.operation(),
            format!("{status} was answered to this request, while the cloud takes the key at /sync-status"),
            "a firewall before the cloud may refuse the text of a row, or the key may not write: see its \
             logs",
        )
        .with_status(status)
    }

    /// The capability that the server had listed and has no more: ask for its status again before the next
    /// delivery.
    pub fn lost_capability(&self) -> Option<Capability> {
        self.capability
    }

    /// Whether what is pending must be sent under a new term.
    pub fn needs_new_term(&self) -> bool {
        self.new_term
    }

    /// Whether the request had begun, and was interrupted or got no answer in time: a shorter one may get
    /// through.
    pub fn was_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Whether the same request is expected to succeed later.
    pub fn is_transient(&self) -> bool {
        self.error.class() == Class::Retry
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            retry_after: None,
            status: None,
            capability: None,
            interrupted: false,
            new_term: false,
            words: None,
            from_application: false,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}
