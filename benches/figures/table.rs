//! The table: a row a figure, with its peer's, the ratio, the spread, the target and the verdict.

use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use crate::machine::Machine;

/// One figure of each run.
#[derive(Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.len(), sorted.len() / 2) {
            (0, _) => f64::NAN,
            (even, half) if even % 2 == 0 => f64::midpoint(sorted[half - 1], sorted[half]),
            (_, half) => sorted[half],
        }
    }

    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Run by run, over several parts.
    pub(crate) fn sum(parts: &[Self]) -> Self {
        let runs = parts.iter().map(|part| part.0.len()).min().unwrap_or(0);
        (0..runs)
            .map(|run| parts.iter().map(|part| part.0[run]).sum())
            .collect()
    }

    /// Run by run; one peer's figure may serve all runs.
    fn over(&self, other: &Self) -> Self {
        let runs = self.0.iter().zip(other.0.iter().cycle());
        Self(runs.map(|(one, other)| one / other).collect())
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(figures: T) -> Self {
        Self(figures.into_iter().collect())
    }
}

/// What a figure counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    PerSecond,
    Seconds,
    Milliseconds,
    Mebibytes,
    MebibytesPerSecond,
    Bytes,
    PercentOfCore,
    Times,
    Count,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Self::PerSecond => format!("{}/s", grouped(figure)),
            Self::Seconds => format!("{figure:.2} s"),
            Self::Milliseconds => format!("{figure:.2} ms"),
            Self::Mebibytes => format!("{figure:.1} MiB"),
            Self::MebibytesPerSecond => format!("{figure:.0} MiB/s"),
            Self::Bytes => format!("{} B", grouped(figure)),
            Self::PercentOfCore => format!("{figure:.2} %"),
            Self::Times => format!("{figure:.2} x"),
            Self::Count => grouped(figure),
        }
    }
}

/// What is to be reached: by the figure itself, or by its ratio to the peer's.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    RatioAtMost(f64),
    RatioAtLeast(f64),
}

/// A line of the table.
pub(crate) struct Row {
    row: &'static str,
    what: String,
    unit: Unit,
    ours: Samples,
    peer: Option<(String, Samples)>,
    target: Option<Target>,
    note: Option<String>,
}

impl Row {
    pub(crate) fn new(row: &'static str, what: impl Into<String>, unit: Unit, ours: Samples) -> Self {
        Self {
            row,
            what: what.into(),
            unit,
            ours,
            peer: None,
            target: None,
            note: None,
        }
    }

    pub(crate) fn peer(mut self, name: impl Into<String>, figures: Samples) -> Self {
        self.peer = Some((name.into(), figures));
        self
    }

    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// What a reader of the figure must know; it is printed below the table.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    fn ratio(&self) -> Option<Samples> {
        let (_, peer) = self.peer.as_ref()?;
        Some(self.ours.over(peer))
    }

    fn is_met(&self) -> Option<bool> {
        let ratio = || self.ratio().map_or(f64::NAN, |ratio| ratio.median());
        Some(match self.target? {
            Target::AtMost(most) => self.ours.median() <= most,
            Target::AtLeast(least) => self.ours.median() >= least,
            Target::RatioAtMost(most) => ratio() <= most,
            Target::RatioAtLeast(least) => ratio() >= least,
        })
    }

    fn aim(&self) -> String {
        match self.target {
            None => String::new(),
            Some(Target::AtMost(most)) => format!("at most {}", self.unit.show(most)),
            Some(Target::AtLeast(least)) => format!("at least {}", self.unit.show(least)),
            Some(Target::RatioAtMost(most)) => format!("at most {most:.2} x"),
            Some(Target::RatioAtLeast(least)) => format!("at least {least:.2} x"),
        }
    }

    fn cells(&self) -> [String; 8] {
        let ratio = self.ratio();
        let (spread, unit) = match &ratio {
            Some(ratio) => (ratio, Unit::Times),
            None => (&self.ours, self.unit),
        };
        let spread = if spread.0.len() < 2 {
            "one run".to_owned()
        } else {
            format!("{} .. {}", unit.show(spread.least()), unit.show(spread.most()))
        };
        let peer = self.peer.as_ref();
        [
            self.row.to_owned(),
            self.what.clone(),
            self.unit.show(self.ours.median()),
            peer.map_or_else(String::new, |(name, figures)| {
                format!("{} {name}", self.unit.show(figures.median()))
            }),
            ratio.map_or_else(String::new, |ratio| Unit::Times.show(ratio.median())),
            spread,
            self.aim(),
            match self.is_met() {
                None => "",
                Some(true) => "met",
                Some(false) => "MISSED",
            }
            .to_owned(),
        ]
    }

    fn json(&self) -> Value {
        let spread = |figures: &Samples| {
            json!({
                "median": figures.median(),
                "min": figures.least(),
                "max": figures.most(),
                "runs": figures.0,
            })
        };
        json!({
            "row": self.row,
            "what": self.what,
            "unit": self.unit.show(0.0).trim_start_matches(['0', '.', ' ']),
            "cloud_sync": spread(&self.ours),
            "peer": self.peer.as_ref().map(|(name, figures)| {
                let mut peer = spread(figures);
                peer["name"] = json!(name);
                peer
            }),
            "ratio": self.ratio().as_ref().map(spread),
            "target": self.target.map(|_| self.aim()),
            "met": self.is_met(),
            "note": self.note,
        })
    }
}

/// The table for people, in Markdown, and its notes.
pub(crate) fn text(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "row",
        "what",
        "cloud-sync",
        "peer",
        "ratio",
        "spread",
        "target",
        "verdict",
    ]);
    for row in rows {
        table.add_row(row.cells());
    }
    let mut text = table.to_string();
    for row in rows {
        if let Some(note) = &row.note {
            text.push_str(&format!("\n\n{}, {}: {note}", row.row, row.what));
        }
    }
    text
}

/// The table for programs.
pub(crate) fn json(
    rows: &[Row],
    failed: &[String],
    machine: &Machine,
    version: &str,
    seconds: f64,
) -> String {
    let document = json!({
        "machine": machine.json(),
        "postgresql": version,
        "seconds": seconds,
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "failed": failed,
    });
    serde_json::to_string_pretty(&document).expect("JSON of numbers and text")
}

/// A whole number, its digits in groups of three.
pub(crate) fn grouped(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
