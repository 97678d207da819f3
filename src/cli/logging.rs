//! Logs: to stderr, without colours if that is no terminal.
//!
//! If stderr is the journal, each line begins with its priority, as in `<4>`, which the journal takes off.
//! The journal has the time too, so the line says neither time nor level.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FmtSpan, Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::error::{Error, Result};

/// Starts to log. `--log` overrides `-v`, which overrides `RUST_LOG`. A command that runs until it is stopped
/// logs more.
///
/// # Errors
/// A configuration error if the filter cannot be read.
pub(super) fn start_logging(log: Option<&str>, verbose: u8, long_lived: bool) -> Result<()> {
    let variable = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = match (log, verbose, variable) {
        (Some(text), _, _) => parse_filter("--log", text)?,
        (None, 0, Some(text)) => parse_filter("RUST_LOG", &text)?,
        (None, 0, None) if long_lived => EnvFilter::new("warn,cloud_sync=info"),
        (None, 0, None) => EnvFilter::new("warn"),
        (None, 1, _) => EnvFilter::new("warn,cloud_sync=debug"),
        (None, _, _) => EnvFilter::new("debug,cloud_sync=trace"),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(without_values(filter)?)
        .with_writer(std::io::stderr)
        // The steps of a batch, each with its time, if their level is enabled.
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(std::io::stderr().is_terminal())
        // Otherwise the subscriber reports on stderr that stderr fails, and panics.
        .log_internal_errors(false);
    let started = if stderr_is_journal() {
        subscriber.event_format(JournalFormat::new()).try_init()
    } else {
        subscriber.try_init()
    };
    started.map_err(|error| Error::config("start the log", error.to_string()))
}

/// Whether stderr goes to the journal: `JOURNAL_STREAM` says which stream does, by its device and inode.
pub(super) fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| format!("{}:{}", stat.st_dev, stat.st_ino) == stream)
}

/// Before a line of the journal that says why the program ends.
pub(super) const JOURNAL_ERROR: &str = "<3>";

/// Lines for the journal.
struct JournalFormat(Format<Full, ()>);

impl JournalFormat {
    fn new() -> Self {
        Self(Format::default().without_time().with_level(false))
    }
}

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(priority(event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// The journal's priority of a level, as a line begins with it.
fn priority(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => JOURNAL_ERROR,
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// A level alone applies to this program; its libraries stay at `warn`.
fn parse_filter(given_by: &str, text: &str) -> Result<EnvFilter> {
    let text = if text.contains([',', '=']) || text == "off" {
        text.to_owned()
    } else {
        format!("warn,cloud_sync={text}")
    };
    EnvFilter::try_new(text).map_err(|error| {
        Error::config(format!("use {given_by}"), error.to_string())
            .remedy("give error, warn, info, debug or trace, or a filter such as cloud_sync::deliver=debug")
    })
}

/// tokio-postgres logs the values of every parameter at the level debug; no line of a log may carry a row's
/// value.
fn without_values(filter: EnvFilter) -> Result<EnvFilter> {
    let directive =
        "tokio_postgres=warn"
            .parse()
            .map_err(|error: tracing_subscriber::filter::ParseError| {
                Error::config("start the log", error.to_string())
            })?;
    Ok(filter.add_directive(directive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_parsed() {
        assert_eq!(
            parse_filter("--log", "debug").unwrap().to_string(),
            "cloud_sync=debug,warn"
        );
        assert!(parse_filter("--log", "cloud_sync::deliver=trace,info").is_ok());
        assert!(parse_filter("--log", "loud").is_err());
        let all = without_values(EnvFilter::new("debug,cloud_sync=trace,tokio_postgres=trace")).unwrap();
        assert!(all.to_string().contains("tokio_postgres=warn"), "{all}");
        assert!(!all.to_string().contains("tokio_postgres=trace"), "{all}");
    }
}
