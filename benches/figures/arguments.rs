//! The command line of the measurements.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::{PossibleValue, PossibleValuesParser};

use crate::rows::ROWS;

/// Compares cloud-sync with its peers, and prints one table.
#[derive(Parser)]
#[command(
    name = "figures",
    override_usage = "make bench ARGS=\"[ROW]... [--list] [--json] [--runs N] [--plot FILE]\"",
    after_help = "The exit code is 0 if a target is missed, 1 if a measurement failed, 2 for wrong usage."
)]
pub(crate) struct Arguments {
    /// What to measure [default: all that has a target]
    #[arg(value_name = "ROW", value_parser = row_names(), hide_possible_values = true)]
    named: Vec<String>,
    /// List the rows
    #[arg(long)]
    pub(crate) list: bool,
    /// Print the table as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// How often each row is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    pub(crate) runs: u8,
    /// Where the row `million` draws time and memory against backlog, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Cargo gives this to each benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// Whether rows were named.
    pub(crate) fn has_names(&self) -> bool {
        !self.named.is_empty()
    }

    /// The rows' names, in the order of the table.
    pub(crate) fn rows(&self) -> Vec<&'static str> {
        let rows = ROWS.iter().filter(|row| match self.has_names() {
            true => self.named.iter().any(|name| name == row.name),
            false => row.always,
        });
        rows.map(|row| row.name).collect()
    }
}

fn row_names() -> PossibleValuesParser {
    let values = ROWS
        .iter()
        .map(|row| PossibleValue::new(row.name).help(row.about));
    PossibleValuesParser::new(values)
}

/// The rows, one a line.
pub(crate) fn list() -> String {
    let mut text = String::new();
    for row in &ROWS {
        let when = if row.always { "" } else { " (only if it is named)" };
        let _ = writeln!(text, "{:10} {}{when}", row.name, row.about);
    }
    text.trim_end().to_owned()
}
