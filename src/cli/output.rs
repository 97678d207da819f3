//! What commands print: one JSON document, or text for people. If the reader has closed the pipe, that is no
//! error.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::json;

use super::logging::{JOURNAL_ERROR, stderr_is_journal};
use crate::error::{Error, Kind, Result};

/// Prints the value as JSON, or as the text that `human` makes of it.
pub(super) fn print<T: Serialize>(json: bool, value: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
    let text = if json {
        serde_json::to_string_pretty(value)
            .map_err(|error| Error::new(Kind::Local, "write JSON", error.to_string()).caused_by(error))?
    } else {
        human(value)
    };
    write_stdout(text.trim_end())
}

/// Prints a text as it is.
pub(super) fn print_text(text: &str) -> Result<()> {
    write_stdout(text.trim_end())
}

/// Prints why the command failed: on stderr, and as JSON on stdout if JSON was asked for.
pub(super) fn print_error(error: &Error, json: bool) {
    // If stderr is closed, nothing is left to report to.
    let mark = if stderr_is_journal() { JOURNAL_ERROR } else { "" };
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{mark}error[{}]: {}", error.code(), error.headline());
    if let Some(remedy) = error.remedy_text() {
        let _ = writeln!(err, "{mark}  help: {remedy}");
    }
    let _ = writeln!(err, "{mark}  more: cloud-sync explain {}", error.code());
    if json {
        let body = json!({
            "success": false,
            "errors": [error.to_string()],
            "code": error.code().as_str(),
            "scope": error.scope().as_str(),
            "remedy": error.remedy_text(),
        });
        let _ = write_stdout(&format!("{body:#}"));
    }
}

/// Formats rows below a header, in columns as wide as they need.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied())
        .add_rows(rows);
    table.trim_fmt()
}

/// A number of bytes in words.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

fn write_stdout(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::local("write to stdout", error)),
    }
}
