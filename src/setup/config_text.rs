//! The proposal as the text of `cloud-sync.toml`, with the reason of each line.

use std::fmt::Write;
use std::path::Path;

use super::{Proposal, ProposedTable};

/// What only a person knows.
pub(crate) struct ConfigAnswers<'a> {
    /// `source.database_url`; `None` if it stays in the environment.
    pub(crate) database_url: Option<&'a str>,
    /// `cloud.url`.
    pub(crate) cloud_url: &'a str,
    /// `cloud.key`; `None` if it stays in the environment.
    pub(crate) cloud_key: Option<&'a str>,
    /// `media.root`.
    pub(crate) media_root: &'a Path,
    /// `store.path`.
    pub(crate) store: &'a Path,
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// The line of a setting that may be in the environment instead.
fn secret(name: &str, value: Option<&str>, variable: &str) -> String {
    match value {
        Some(value) => format!("{name} = {}", quoted(value)),
        None => format!("# {name}: {variable} in the environment has it"),
    }
}

/// The width of the lines.
const WIDTH: usize = 106;

/// Words in lines that begin with `begin`.
fn lines_of(begin: &str, words: &str) -> String {
    let mut text = String::new();
    let mut line = begin.to_owned();
    for word in words.split(' ') {
        if line.len() > begin.len() && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = begin.to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
    text
}

impl Proposal {
    /// The text of `cloud-sync.toml`.
    pub(crate) fn config_text(&self, answers: &ConfigAnswers<'_>) -> String {
        let mut text = String::from(
            "# Written by `cloud-sync setup`. `cloud-sync check` says whether it fits the site and the cloud.\n\
             # It may hold secrets: only the user of the service may read it. DATABASE_URL and CLOUD_API_KEY in the\n\
             # environment override it.\n\n",
        );
        let _ = write!(
            text,
            "[source]\n{}\n\n[cloud]\nurl = {}\n{}\n\n[media]\nroot = {}\n\n[store]\npath = {}\n",
            secret("database_url", answers.database_url, "DATABASE_URL"),
            quoted(answers.cloud_url),
            secret("key", answers.cloud_key, "CLOUD_API_KEY"),
            quoted_path(answers.media_root),
            quoted_path(answers.store)
        );
        if self.builtin {
            text.push_str(
                "\n# The tables are the nine of a college, which the program knows: no entity needs to be named.\n",
            );
        } else {
            self.write_catalogue(&mut text);
        }
        text
    }

    fn write_catalogue(&self, text: &mut String) {
        text.push_str(
            "\n# Each table that fits a pattern is replicated, unless a pattern with ! fits it. Columns whose names\n\
             # look private stay on the site, unless an [[entity]] names them under include.\n\
             [catalogue]\ntables = [\n",
        );
        for pattern in &self.patterns {
            let why = self
                .left_out
                .iter()
                .find(|one| one.pattern.as_ref() == Some(pattern));
            let comment = why.map_or(String::new(), |one| format!("  # {}", one.why));
            let _ = writeln!(text, "    {},{comment}", quoted(pattern));
        }
        text.push_str("]\n");
        let private: Vec<String> = self.tables.iter().flat_map(of_private).collect();
        if !private.is_empty() {
            let private = format!("These columns stay on the site: {}.", private.join(", "));
            text.push_str(&lines_of("#", &private));
        }
        for table in self
            .tables
            .iter()
            .filter(|table| is_more_than_its_pattern(table) || has_many(table))
        {
            write_entity(text, table);
        }
    }
}

fn of_private(table: &ProposedTable) -> impl Iterator<Item = String> {
    table
        .private
        .iter()
        .map(|column| format!("{}.{column}", table.table))
}

/// Whether the table needs an `[[entity]]` of its own.
fn is_more_than_its_pattern(table: &ProposedTable) -> bool {
    !table.files.is_empty() || table.is_renamed
}

fn has_many(table: &ProposedTable) -> bool {
    !table.retention_by.is_empty()
}

fn write_entity(text: &mut String, table: &ProposedTable) {
    // It would say nothing: it is there for whoever wants a retention.
    let mark = if is_more_than_its_pattern(table) { "" } else { "# " };
    let _ = writeln!(
        text,
        "\n{mark}[[entity]]\n{mark}table = {}",
        quoted(&table.sql_name)
    );
    if table.is_renamed {
        let _ = writeln!(
            text,
            "# The name that follows from the table's is another entity's.\nname = {}",
            quoted(&table.entity)
        );
    }
    if !table.files.is_empty() {
        text.push_str("files = [\n");
        for file in &table.files {
            let many = if file.many { ", many = true" } else { "" };
            let _ = writeln!(
                text,
                "    {{ column = {}, url_column = {}, directory = {}{many} }},",
                quoted(&file.column),
                quoted(&file.url_column),
                quoted(&file.directory)
            );
        }
        text.push_str("]\n");
    }
    if let Some(column) = table.retention_by.first() {
        let _ = writeln!(
            text,
            "# About {} rows. To compare and to backfill the newest only, by one of the columns {}:\n\
             # retention = {{ column = {}, days = 90 }}",
            table.rows,
            table.retention_by.join(", "),
            quoted(column)
        );
    }
}
