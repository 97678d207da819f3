//! `setup`: looks at the site's database and writes the settings.

use std::fs::{OpenOptions, Permissions, set_permissions};
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;

use clap::Args;
use secrecy::ExposeSecret;
use serde::Serialize;

use super::{Context, SiteFlags, output};
use crate::catalogue::Catalogue;
use crate::change::Epoch;
use crate::config::{EffectiveValue, LoadOptions, SettingOrigin, Settings};
use crate::deliver::ChangeOrigin;
use crate::error::{Error, Result};
use crate::media::MediaRoot;
use crate::replicator::{self, complete_settings};
use crate::setup::{self, ConfigAnswers, Proposal, SetupAnswers};
use crate::source::complete::PatternScope;
use crate::source::identity::OutboxDeclaration;
use crate::source::install;

/// The file that is written if none is named.
const DEFAULT_FILE: &str = "cloud-sync.toml";

const EXAMPLES: &str = "\
Examples:
  cloud-sync setup                 ask for what is not known, propose, then write cloud-sync.toml
  cloud-sync setup --dry-run       show the file and write nothing
  cloud-sync setup --config /etc/cloud-sync/cloud-sync.toml --yes \\
      --database-url postgresql://owner@localhost/school --cloud-url https://cloud.example/api
  cloud-sync setup --answers answers.toml

The file of answers has, each as a line `name = value`, what the questions would ask: database_url, cloud_url,
cloud_key, media_root, in quotes; write and install_capture, true or false. What it lacks gets its default.

The key is best given by CLOUD_API_KEY, and a password by DATABASE_URL: what comes from the environment is
not written to the file.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SetupArgs {
    /// Ask nothing: write the file and install capture
    #[arg(long)]
    yes: bool,
    /// Take the answers from this file (TOML), and ask nothing
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Print the file, and change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// Write the file only: capture is not installed
    #[arg(long)]
    no_init: bool,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Serialize)]
struct SetupReport {
    /// The file that was written; null if none was.
    config: Option<PathBuf>,
    #[serde(flatten)]
    proposal: Proposal,
    /// What the cloud answered, or why it did not.
    cloud: String,
    /// SQL that makes a role with no more rights than it needs.
    role: String,
    /// The entities whose capture was installed.
    captured: Vec<String>,
}

pub(super) async fn execute(context: &Context, args: SetupArgs) -> Result<ExitCode> {
    let target = context.options.config.clone();
    let target = target.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    if configures_a_site(&target) && !args.force && !args.dry_run {
        return Err(
            Error::config(format!("write {}", target.display()), "it exists already").remedy(
                "name another file by --config, see by --dry-run what would be written, or replace it by --force",
            ),
        );
    }
    let answers = args.answers.as_deref().map(SetupAnswers::read).transpose()?;
    let asks_nothing = args.yes || answers.is_some();
    let may_ask = std::io::stdin().is_terminal() && !asks_nothing && !context.json;
    if !may_ask && !asks_nothing && !args.dry_run {
        return Err(
            Error::config("set a site up", "there is no terminal to ask questions on")
                .remedy("use --yes to write the file and install capture, --answers to answer in a file, or --dry-run to see \
                 what would be written"),
        );
    }
    let settings = match &answers {
        Some(answers) => with_answers(context, answers)?,
        None if may_ask => ask_for_missing(context)?,
        None => context.settings().clone(),
    };
    let (cloud_url, cloud_key) = settings.require_cloud()?;
    let session = replicator::connect(&settings, "setup").await?;
    let media_root = absolute_path(&settings.media.root)?;
    let store = absolute_path(&settings.store.path)?;
    let root = MediaRoot {
        path: media_root.clone(),
        strip_prefix: settings.media.strip_prefix.clone(),
    };
    let proposal = setup::propose(session.client(), &root).await?;
    if proposal.tables.is_empty() {
        return Err(Error::config(
            "set a site up",
            "the database has no table that can be replicated",
        )
        .remedy(
            "name the site's database; `cloud-sync setup --dry-run --json` says why each table is left out",
        ));
    }
    let text = proposal.config_text(&ConfigAnswers {
        database_url: Some(settings.require_database_url()?.expose_secret())
            .filter(|_| !is_of_environment(context, "source.database_url")),
        cloud_url: cloud_url.as_str(),
        cloud_key: Some(cloud_key.expose_secret()).filter(|_| !is_of_environment(context, "cloud.key")),
        media_root: &media_root,
        store: &store,
    });
    let cloud = ask_cloud(&settings).await;
    let mut report = SetupReport {
        config: None,
        role: role_sql(&settings, &proposal),
        cloud: match &cloud {
            Ok(answer) => answer.clone(),
            Err(error) => error.to_string(),
        },
        proposal,
        captured: Vec::new(),
    };
    if args.dry_run {
        output::print(context.json, &report, |_| text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !context.json {
        say(&describe(&report));
    }
    let may_write = match &answers {
        Some(answers) => answers.write,
        None => !may_ask || confirm(&format!("Write {}?", target.display()))?,
    };
    if !may_write {
        if context.json {
            output::print(true, &report, |_| String::new())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    write_file(&target, &text)?;
    report.config = Some(target.clone());
    let written = Settings::load(LoadOptions {
        config: Some(target.clone()),
        ..context.options.clone()
    })?;
    let completed = complete_settings(&written.settings, PatternScope::All).await?;
    let may_install = !args.no_init
        && match &answers {
            Some(answers) => answers.install_capture,
            None => !may_ask || confirm("Install capture in the database now?")?,
        };
    if may_install {
        report.captured = capture(&completed).await?;
    }
    output::print(context.json, &report, |report| next_steps(report, &target))?;
    Ok(match cloud {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(error.exit_code()),
    })
}

/// Installs capture. Returns the entities that are captured.
async fn capture(settings: &Settings) -> Result<Vec<String>> {
    let url = settings.require_database_url()?;
    install::init(url, &settings.catalogue, OutboxDeclaration::Nothing).await?;
    let entities = settings.catalogue.entities().iter();
    Ok(entities.map(|entity| entity.name.clone()).collect())
}

/// Whether a setting comes from the environment or from `.env`, where it stays.
fn is_of_environment(context: &Context, name: &str) -> bool {
    let is_it = |value: &&EffectiveValue| value.key.name == name;
    let value = context.loaded.values.iter().find(is_it);
    value.is_some_and(|value| {
        matches!(
            value.origin,
            SettingOrigin::Environment(_) | SettingOrigin::DotEnv(_)
        )
    })
}

fn absolute_path(path: &Path) -> Result<PathBuf> {
    absolute(path).map_err(|error| Error::local(format!("find the folder {}", path.display()), error))
}

/// The settings that are asked for, each with its question.
const QUESTIONS: [(&str, &str); 4] = [
    (
        "source.database_url",
        "The site's database, as in postgresql://user:password@host/database",
    ),
    (
        "cloud.url",
        "The cloud API's URL, as in https://cloud.example/api",
    ),
    ("cloud.key", "The key that the cloud gave this site"),
    ("media.root", "The folder of the media files"),
];

/// The settings with the answers of a file. They override the file of settings that is there; flags and the
/// environment override them.
fn with_answers(context: &Context, answers: &SetupAnswers) -> Result<Settings> {
    let mut options = context.options.clone();
    options.config.clone_from(&context.loaded.file);
    for value in &context.loaded.values {
        let is_given = !matches!(
            value.origin,
            SettingOrigin::Default | SettingOrigin::Profile | SettingOrigin::File(..)
        );
        if let Some(answer) = answers.setting(value.key.name).filter(|_| !is_given) {
            options
                .overrides
                .push((value.key.name.to_owned(), answer.to_owned()));
        }
    }
    Ok(Settings::load(options)?.settings)
}

/// Asks for the settings that nothing else gives.
fn ask_for_missing(context: &Context) -> Result<Settings> {
    let mut options = context.options.clone();
    options.config.clone_from(&context.loaded.file);
    for (name, question) in QUESTIONS {
        let is_it = |value: &&EffectiveValue| value.key.name == name;
        let Some(value) = context.loaded.values.iter().find(is_it) else {
            continue;
        };
        if value.origin != SettingOrigin::Default {
            continue;
        }
        let default = value.shown().unwrap_or_default();
        let hint = if default.is_empty() {
            String::new()
        } else {
            format!(" [{default}]")
        };
        let answer = ask(&format!("{question}{hint}: "))?;
        let answer = if answer.is_empty() {
            default.to_owned()
        } else {
            answer
        };
        if !answer.is_empty() {
            options.overrides.push((name.to_owned(), answer));
        }
    }
    Ok(Settings::load(options)?.settings)
}

fn ask(question: &str) -> Result<String> {
    let failed = |error| Error::local("ask on the terminal", error);
    let mut err = std::io::stderr().lock();
    write!(err, "{question}")
        .and_then(|()| err.flush())
        .map_err(failed)?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(failed)?;
    Ok(line.trim().to_owned())
}

fn confirm(question: &str) -> Result<bool> {
    let answer = ask(&format!("{question} [Y/n] "))?.to_lowercase();
    Ok(matches!(answer.as_str(), "" | "y" | "yes"))
}

fn say(text: &str) {
    // If stderr is closed, nobody reads it.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

async fn ask_cloud(settings: &Settings) -> Result<String> {
    let origin = ChangeOrigin {
        source_id: settings.source.source_id.clone().unwrap_or_default(),
        epoch: Epoch(1),
        database: String::new(),
    };
    let mut settings = settings.clone();
    // The cloud is asked who it is; no entity is needed for that.
    settings.catalogue = Catalogue::builtin();
    let info = replicator::preconditions::check_cloud(&settings, &origin).await?;
    Ok(replicator::preconditions::describe_cloud(info))
}

/// SQL that makes a role which may capture these tables and no more.
fn role_sql(settings: &Settings, proposal: &Proposal) -> String {
    let database = settings
        .require_database_url()
        .ok()
        .and_then(|url| url::Url::parse(url.expose_secret()).ok())
        .map(|url| url.path().trim_start_matches('/').to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "postgres".to_owned());
    let quote = crate::source::quote_name;
    let owners: Vec<String> = proposal.owners.iter().map(|owner| quote(owner)).collect();
    let first = if proposal.is_owned_by_superuser {
        "-- a superuser owns tables: first give them a role of their own, by `alter table … owner to …`\n"
    } else {
        ""
    };
    format!(
        "{first}create role cloud_sync login password '…' in role {};\ngrant create on database {} to cloud_sync;",
        owners.join(", "),
        quote(&database)
    )
}

/// Whether the file is there and sets more than the store: the example of the Debian package does not.
fn configures_a_site(target: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(target) else {
        return target.exists();
    };
    let sections = text.parse::<toml::Table>();
    sections.map_or(true, |sections| sections.keys().any(|section| section != "store"))
}

/// Writes the file: only its owner may read it. An existing one is replaced at once; who owned it owns it
/// again, and its group may read it if it could before.
fn write_file(target: &Path, text: &str) -> Result<()> {
    let failed = |error| Error::local(format!("write {}", target.display()), error);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let write = |path: &Path| {
        let mut file = options.open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    let Ok(before) = target.metadata() else {
        return write(target).map_err(failed);
    };
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = target.with_file_name(format!(".{name}.{}", std::process::id()));
    let keep_owner = || {
        // Only root may give a file away. Another user keeps it, for itself alone.
        match chown(&temporary, Some(before.uid()), Some(before.gid())) {
            Ok(()) => set_permissions(&temporary, Permissions::from_mode(0o600 | before.mode() & 0o040)),
            Err(_) => Ok(()),
        }
    };
    write(&temporary)
        .and_then(|()| keep_owner())
        .and_then(|()| std::fs::rename(&temporary, target))
        .map_err(|error| {
            // What is left of it is of no use.
            let _ = std::fs::remove_file(&temporary);
            failed(error)
        })
}

fn describe(report: &SetupReport) -> String {
    let proposal = &report.proposal;
    let rows = proposal.tables.iter().map(|table| {
        let files: Vec<&str> = table.files.iter().map(|files| files.column.as_str()).collect();
        vec![
            table.table.clone(),
            table.entity.clone(),
            table.rows.to_string(),
            output::size(table.bytes.max(0).cast_unsigned()),
            files.join(", "),
            table.private.join(", "),
        ]
    });
    let header = [
        "table",
        "entity",
        "rows, about",
        "size",
        "names files",
        "stays on the site",
    ];
    let mut text = output::table(&header, rows);
    if !proposal.left_out.is_empty() {
        let rows = proposal
            .left_out
            .iter()
            .map(|one| vec![one.table.clone(), one.why.clone()]);
        text += "\n\n";
        text += &output::table(&["not replicated", "why"], rows);
    }
    format!(
        "{text}\n\ncloud: {}\n\nA role with no more rights than needed, for source.database_url:\n{}\n",
        report.cloud,
        indented(&report.role)
    )
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn next_steps(report: &SetupReport, target: &Path) -> String {
    let config = if target == Path::new(DEFAULT_FILE) {
        String::new()
    } else {
        format!(" --config {}", target.display())
    };
    let init = if report.captured.is_empty() {
        format!("    cloud-sync init{config}        install capture\n")
    } else {
        String::new()
    };
    let captured = match report.captured.len() {
        0 => String::new(),
        count => format!("Capture of {count} entities is installed. "),
    };
    format!(
        "{} is written. {captured}Next:\n\n{init}    cloud-sync check{config}       is everything in place?\n    \
         cloud-sync backfill{config}    push the rows that are there already\n    cloud-sync run{config}         \
         replicate from now on; docs/guide/install.md says how to run it as a service",
        target.display()
    )
}
