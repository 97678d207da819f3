//! What the program is told on its command line.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::rows::ROWS;

/// So that all rows take less than 15 minutes.
const ALLOWANCE: Allowance = Allowance {
    row: Duration::from_secs(75),
    all: Duration::from_secs(600),
};

/// How long it may take until no second or third run begins.
#[derive(Clone)]
pub(crate) struct Allowance {
    /// Since the row began.
    pub(crate) row: Duration,
    /// Since the program began.
    pub(crate) all: Duration,
}

const HELP: &str = "\
Measures cloud-sync beside its peers, and prints one table.

Usage: make bench ARGS=\"[ROW]… [--list] [--json] [--runs N] [--plot FILE]\"

  ROW           what to measure; unless said otherwise, all that has a target
  --list        the rows
  --json        the table as JSON
  --runs N      how often each is measured; 3 unless said otherwise
  --plot FILE   where the row `million` draws time and memory against backlog, as SVG
  --help        this

The exit code is 0 where a target is missed, 1 where a measurement failed, 2 for wrong usage.";

/// What to measure.
pub(crate) struct Arguments {
    /// The rows' names, in the order of the table.
    pub(crate) rows: Vec<&'static str>,
    pub(crate) json: bool,
    pub(crate) runs: usize,
    pub(crate) plot: Option<PathBuf>,
    /// None where the rows were named.
    pub(crate) allowance: Option<Allowance>,
}

/// What the command line asks for.
pub(crate) enum Wish {
    Measure(Arguments),
    Told(String),
}

pub(crate) fn parse(given: impl Iterator<Item = String>) -> Result<Wish, String> {
    let (mut json, mut runs, mut plot) = (false, 3, None);
    let mut named: Vec<String> = Vec::new();
    let mut given = given;
    while let Some(argument) = given.next() {
        let (flag, value) = match argument.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag.to_owned(), Some(value.to_owned())),
            _ => (argument, None),
        };
        let mut wanted = |what: &str| {
            let value = value.clone().or_else(|| given.next());
            value.ok_or_else(|| format!("{flag} wants {what}"))
        };
        match flag.as_str() {
            // Cargo says so to each benchmark.
            "--bench" => {}
            "--help" | "-h" => return Ok(Wish::Told(HELP.to_owned())),
            "--list" => return Ok(Wish::Told(list())),
            "--json" => json = true,
            "--runs" => {
                let number = wanted("a number")?;
                let counted = number.parse().ok().filter(|runs| (1..=99).contains(runs));
                runs =
                    counted.ok_or_else(|| format!("--runs wants a number from 1 to 99, not {number:?}"))?;
            }
            "--plot" => plot = Some(PathBuf::from(wanted("a file")?)),
            flag if flag.starts_with('-') => {
                return Err(format!("there is no flag {flag}; --help lists them"));
            }
            name if ROWS.iter().any(|row| row.name == name) => named.push(name.to_owned()),
            name => return Err(format!("there is no row {name:?}; the rows are\n{}", list())),
        }
    }
    let rows = ROWS.iter().filter(|row| {
        if named.is_empty() {
            row.always
        } else {
            named.iter().any(|name| name == row.name)
        }
    });
    Ok(Wish::Measure(Arguments {
        rows: rows.map(|row| row.name).collect(),
        json,
        runs,
        plot,
        allowance: named.is_empty().then_some(ALLOWANCE),
    }))
}

fn list() -> String {
    let mut text = String::new();
    for row in &ROWS {
        let when = if row.always {
            ""
        } else {
            " (only where it is named)"
        };
        let _ = writeln!(text, "{:10} {}{when}", row.name, row.about);
    }
    text.trim_end().to_owned()
}
