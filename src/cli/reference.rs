//! The generated references in docs/reference: settings from the table of keys, commands from clap, metrics
//! from their table. The test fails if a file differs from what it generates; with `UPDATE=1` it writes the
//! files.

use std::fmt::Write;
use std::path::Path;

use clap::{Arg, ArgAction, Args, Command, CommandFactory};

use super::{Cli, SiteFlags};
use crate::config::keys::{KEYS, SettingKey, ValueShape};
use crate::error::Code;
use crate::metrics::table::{METRICS, MetricKind};

const UPDATE: &str = "UPDATE=1 cargo test --lib cli::reference";

#[test]
fn the_references_are_what_the_program_is() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    let update = std::env::var_os("UPDATE").is_some();
    for (name, text) in [
        ("settings.md", settings()),
        ("commands.md", commands()),
        ("metrics.md", metrics()),
        ("errors.md", errors()),
    ] {
        let path = folder.join(name);
        if update {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        let first = written.lines().zip(text.lines()).find(|(old, new)| old != new);
        assert!(
            written == text,
            "docs/reference/{name} is out of date, run `{UPDATE}` to update it; first difference: {first:?}"
        );
    }
}

/// The head of a page.
fn page(title: &str, source: &str) -> String {
    format!("<!-- Generated from {source}. Do not edit: run `{UPDATE}` instead. -->\n\n# {title}\n\n")
}

/// Escapes a text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn code(text: &str) -> String {
    format!("`{}`", cell(text))
}

fn settings() -> String {
    let mut text = page("Settings", "src/config/keys.rs");
    text.push_str(
        "Settings come from `cloud-sync.toml`. Environment variables and a `.env` file override the file, \
         and flags override both. `--config FILE` names another file; `--set cloud.timeout=10s` sets one \
         setting. `cloud-sync config` prints the effective settings and where each came from.\n\n\
         Each setting has the variable `CLOUD_SYNC_<SECTION>_<KEY>`, for instance \
         `CLOUD_SYNC_CLOUD_TIMEOUT`. A setting in the section `[cloud]` is a line below `[cloud]` in the \
         file.\n\n\
         - *Secret*: its value is never shown.\n\
         - *Restart*: a running program takes a new value only after a restart; it takes all others on \
         SIGHUP, and some seconds after the file has changed.\n\n\
         `[[entity]]` is described in [Entities](../guide/entities.md).\n",
    );
    let mut section = "";
    for key in KEYS {
        if key.section() != section {
            section = key.section();
            write!(
                text,
                "\n## [{section}]\n\n| setting | default | value | what it is |\n|---|---|---|---|\n"
            )
            .unwrap();
        }
        let default = key.default.map_or_else(String::new, code);
        let (name, help) = (code(key.leaf()), cell(key.help));
        let (value, notes) = (shape(key.shape), notes(key));
        writeln!(text, "| {name} | {default} | {value} | {help}{notes} |").unwrap();
    }
    text
}

fn notes(key: &SettingKey) -> String {
    let mut notes = String::new();
    if let Some(variable) = key.legacy {
        write!(notes, ". Also `{variable}`").unwrap();
    }
    if key.secret {
        notes.push_str(". *Secret*");
    }
    if !key.reloads() {
        notes.push_str(". *Restart*");
    }
    notes
}

fn shape(shape: ValueShape) -> String {
    match shape {
        ValueShape::Text => "text".to_owned(),
        ValueShape::Path => "a path".to_owned(),
        ValueShape::Bool => "`true` or `false`".to_owned(),
        ValueShape::Count { min, max } => format!("{min} to {max}"),
        ValueShape::Duration { min, max } => format!("a time span, {} to {}", span(min), span(max)),
        ValueShape::DurationOrAuto { min, max } => {
            format!("`auto`, or a time span, {} to {}", span(min), span(max))
        }
        ValueShape::Bandwidth => "limits by days and times".to_owned(),
        ValueShape::Budget => "bytes of a day and of a month".to_owned(),
        ValueShape::Size { min, max } => format!("a size, {} to {}", size(min), size(max)),
        ValueShape::Address => "an IP address and a port".to_owned(),
        ValueShape::HttpUrl => "an `http://` or `https://` URL".to_owned(),
        ValueShape::DatabaseUrl => "a `postgresql://` URL".to_owned(),
        ValueShape::Word => "a word".to_owned(),
        ValueShape::Capabilities => "`auto`, or a list".to_owned(),
        ValueShape::Driver => "`api`, `s3`, `gcs`, `azure` or `file`".to_owned(),
        ValueShape::Cron => "plain words, a cron expression, or `off`".to_owned(),
        ValueShape::TimeZone => "a time zone".to_owned(),
        ValueShape::WebhookUrl => "an `http://` or `https://` URL".to_owned(),
        ValueShape::SmtpUrl => "an `smtp://` or `smtps://` URL".to_owned(),
        ValueShape::SiteKeys => "a table".to_owned(),
        ValueShape::Profile => "`contract` or `laravel`".to_owned(),
        ValueShape::UrlPath => "a path of a URL".to_owned(),
        ValueShape::FormFields => "a table".to_owned(),
        ValueShape::TablePatterns => "a list of patterns".to_owned(),
    }
}

/// Milliseconds, in the largest unit that divides them.
fn span(milliseconds: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (1000, "s"), (1, "ms")];
    in_units(milliseconds, &units)
}

/// Bytes, in the largest unit that divides them.
fn size(bytes: u64) -> String {
    let units = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
        (1, "B"),
    ];
    in_units(bytes, &units)
}

fn in_units(count: u64, units: &[(u64, &str)]) -> String {
    let unit = units
        .iter()
        .find(|(unit, _)| count > 0 && count.is_multiple_of(*unit));
    unit.map_or_else(
        || count.to_string(),
        |(unit, name)| format!("{}{name}", count / unit),
    )
}

fn commands() -> String {
    let mut text = page("Commands", "the command line");
    let mut root = Cli::command();
    root.build();
    text.push_str(
        "Exit codes: 0 done; 1 some rows or files failed; 2 wrong usage or settings; 3 the site's \
        database is ",
    );
    text.push_str(
        "unreachable; 4 the cloud is unreachable or refused the key. What a person reads goes to \
        stdout, logs and ",
    );
    text.push_str(
        "errors go to stderr. With `--json`, stdout is one JSON document.\n\n## Options of every command\n\n",
    );
    options(&mut text, root.get_arguments().filter(|arg| arg.is_global_set()));
    text.push_str(
        "\n## Options of the commands of a site\n\nEvery command but `receiver` and `demo` takes them.\n\n",
    );
    let site: Vec<Arg> = SiteFlags::augment_args(Command::new("site"))
        .get_arguments()
        .cloned()
        .collect();
    options(&mut text, site.iter());
    for command in root
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        describe(&mut text, command, &site, 2);
    }
    text
}

/// Describes a command and its subcommands, without the options that all commands of a `site` have.
fn describe(text: &mut String, command: &Command, site: &[Arg], depth: usize) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    write!(text, "\n{} {name}\n\n{about}.\n", "#".repeat(depth)).unwrap();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    write!(text, "\n```text\n{usage}\n```\n").unwrap();
    let shared = |arg: &&Arg| {
        site.iter()
            .any(|other| other.get_id() == arg.get_id() && other.get_help() == arg.get_help())
    };
    let own = |arg: &&Arg| !arg.is_global_set() && !shared(arg) && arg.get_id() != "help";
    let mut arguments = command.get_arguments().filter(own).peekable();
    if arguments.peek().is_some() {
        text.push('\n');
        options(text, arguments);
    }
    if let Some(examples) = command.get_after_help() {
        let examples = examples.to_string();
        let examples: Vec<&str> = examples.lines().skip(1).map(str::trim).collect();
        write!(text, "\n```text\n{}\n```\n", examples.join("\n")).unwrap();
    }
    for below in command
        .get_subcommands()
        .filter(|below| below.get_name() != "help")
    {
        describe(text, below, site, depth + 1);
    }
}

fn options<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    text.push_str("| option | what it does |\n|---|---|\n");
    for argument in arguments {
        let values: Vec<String> = argument
            .get_value_names()
            .unwrap_or_default()
            .iter()
            .map(
                |name| match argument.is_positional() && argument.get_action().takes_values() {
                    true if matches!(argument.get_action(), ArgAction::Append) => format!("<{name}>…"),
                    _ => format!("<{name}>"),
                },
            )
            .collect();
        let flags = argument.get_short().map(|short| format!("-{short}"));
        let flags = flags
            .into_iter()
            .chain(argument.get_long().map(|long| format!("--{long}")));
        let flags = flags.collect::<Vec<_>>().join(", ");
        let takes_values = argument.get_action().takes_values();
        let usage = match (flags.is_empty(), takes_values) {
            (true, _) => values.join(" "),
            (false, true) => format!("{flags} {}", values.join(" ")),
            (false, false) => flags,
        };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let default: Vec<_> = argument
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        let default = match default.is_empty() || !takes_values {
            true => String::new(),
            false => format!(" (default {})", default.join(" ")),
        };
        writeln!(text, "| {} | {}{default} |", code(&usage), cell(&help)).unwrap();
    }
}

fn metrics() -> String {
    let mut text = page("Metrics", "src/metrics/table.rs");
    text.push_str(
        "`GET /metrics` on the address of `control.listen` returns these in the OpenMetrics format, which \
         Prometheus reads. Histograms are in seconds. [What to watch](../guide/operate.md#what-to-watch) \
         says which ones ask for an alarm.\n\n| metric | kind | label | what it says |\n|---|---|---|---|\n",
    );
    for metric in METRICS {
        let name = match metric.kind {
            MetricKind::Counter => format!("{}_total", metric.name),
            MetricKind::Gauge | MetricKind::Histogram => metric.name.to_owned(),
        };
        let label = metric.label.map_or_else(String::new, |label| match label.values {
            [] => code(label.name),
            values => format!("{}: {}", code(label.name), values.join(", ")),
        });
        let (name, kind, help) = (code(&name), metric.kind.word(), cell(metric.help));
        writeln!(text, "| {name} | {kind} | {label} | {help} |").unwrap();
    }
    text
}

fn errors() -> String {
    let mut text = page("Errors", "src/error/code.rs");
    text.push_str(
        "Each error has a code. `cloud-sync explain CODE` prints the same as this page. Codes are stable.\n\n\
         | code | what failed | what it means | what to do |\n|---|---|---|---|\n",
    );
    for code in Code::ALL {
        let (meaning, remedy) = (cell(code.meaning()), cell(code.remedy()));
        let _ = writeln!(text, "| {code} | {} | {meaning} | {remedy} |", cell(code.title()));
    }
    text
}
