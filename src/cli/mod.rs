//! The command line: one command a file. Results go to stdout, logs and errors go to stderr. With `--json`,
//! stdout is one JSON document, also if the command fails.
//!
//! Exit codes: 0 done; 1 some rows or files failed; 2 wrong usage or configuration; 3 the source is
//! unreachable; 4 the cloud is unreachable or refused the key.

mod alerts;
mod backfill;
mod check;
mod config;
mod decrypt;
mod demo;
mod explain;
mod files;
mod init;
mod key;
mod logging;
mod output;
mod pause;
mod progress;
mod quarantine;
mod receiver;
#[cfg(test)]
mod reference;
mod reload;
mod replay;
mod run;
mod service_manager;
mod setup;
mod shell;
mod status;
mod sync;
mod token;
mod uninstall;
mod upgrade;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{LoadOptions, Loaded, Settings};
use crate::error::Result;
use crate::replicator::Replicator;

const AFTER_HELP: &str = "\
Settings come from cloud-sync.toml. Environment variables and a .env file override it; flags override both.
`cloud-sync config --explain` lists them all.

Exit codes: 0 done; 1 some rows or files failed; 2 wrong usage or configuration;
3 the source is unreachable; 4 the cloud is unreachable or refused the key.

Examples:
  cloud-sync setup            look at the database, write the settings, install capture
  cloud-sync check            is everything in place?
  cloud-sync init             install capture in the site's database
  cloud-sync backfill         push the rows that are there already
  cloud-sync run              replicate from now on
  cloud-sync status           is it replicating, and how far behind is it?";

/// Carries each change of a site's PostgreSQL database, and the files that its rows name, to the site's
/// cloud.
#[derive(Debug, Parser)]
#[command(name = "cloud-sync", version, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The configuration file [default: cloud-sync.toml, or /etc/cloud-sync/cloud-sync.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Set one setting, as in --set cloud.timeout=10s; other users can see flags, so keep secrets in the
    /// environment
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = parse_key_value)]
    set: Vec<(String, String)>,
    /// What to log: error, warn, info, debug, trace, or a filter such as cloud_sync::deliver=debug
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at the site's database, propose what is replicated, and write the settings
    Setup(setup::SetupArgs),
    /// Install capture in the site's database; can be run again
    Init(init::InitArgs),
    /// Bring capture in the site's database up to this version of the program; can be run again
    Upgrade(upgrade::UpgradeArgs),
    /// Remove capture from the site's database; can be run again
    Uninstall(uninstall::UninstallArgs),
    /// Replicate continuously and serve the operator API
    Run(run::RunArgs),
    /// Compare with the cloud once, and push what is missing
    Sync(sync::SyncArgs),
    /// Push the rows that were there before capture; can be interrupted and resumed
    Backfill(backfill::BackfillArgs),
    /// Send again from an earlier position or time
    Replay(replay::ReplayArgs),
    /// Print lag, last and next sync, counts, quarantine, files
    Status(status::StatusArgs),
    /// Look at each precondition, one line each: ok, or what is wrong and the remedy
    Check(check::CheckArgs),
    /// Decide on rows that the cloud refused, or that cannot be read
    Quarantine(quarantine::QuarantineArgs),
    /// Send nothing for a while, or nothing of one entity, or no files; capture goes on
    Pause(pause::PauseArgs),
    /// End a pause: what was kept is sent
    Resume(pause::ResumeArgs),
    /// Try whether alerts arrive
    Alerts(alerts::AlertsArgs),
    /// Make, list and revoke tokens of the operator API and the page, each with a name
    Token(token::TokenArgs),
    /// Make, list, rotate and recover the keys that encrypt columns
    Key(key::KeyArgs),
    /// Decrypt rows that were read from the cloud
    Decrypt(decrypt::DecryptArgs),
    /// Say why one row is not in the cloud, and what to do
    Why(why::WhyArgs),
    /// List the files that are not in the cloud, and why
    Files(files::FilesArgs),
    /// Serve as the reference cloud server
    Receiver(receiver::ReceiverArgs),
    /// Show a sample school with its own PostgreSQL, a receiver and the replicator, live
    Demo(demo::DemoArgs),
    /// Print the effective settings and where each came from, with secrets hidden
    Config(config::ConfigArgs),
    /// Say what an error's code means and what to do
    Explain(explain::ExplainArgs),
    /// Print what a shell needs to complete the commands
    Completions(shell::CompletionsArgs),
    /// Write the manual's pages
    Man(shell::ManArgs),
}

/// Flags for the settings that are most often given by hand.
#[derive(Debug, Args, Default)]
struct SiteFlags {
    /// The site's database, for source.database_url
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// The cloud API's base URL, for cloud.url
    #[arg(long, value_name = "URL")]
    cloud_url: Option<String>,
    /// The media folder, for media.root
    #[arg(long, value_name = "FOLDER")]
    media: Option<String>,
    /// The checkpoint store's folder, for store.path
    #[arg(long, value_name = "FOLDER")]
    store: Option<String>,
}

impl SiteFlags {
    fn overrides(&self) -> Vec<(String, String)> {
        given_flags([
            ("source.database_url", &self.database_url),
            ("cloud.url", &self.cloud_url),
            ("media.root", &self.media),
            ("store.path", &self.store),
        ])
    }
}

/// The flags that were given, as overrides of settings.
fn given_flags<const N: usize>(flags: [(&str, &Option<String>); N]) -> Vec<(String, String)> {
    flags
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
        .collect()
}

fn parse_key_value(text: &str) -> std::result::Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
        .ok_or_else(|| "write KEY=VALUE, as in cloud.timeout=10s".to_owned())
}

/// What every command gets.
struct Context {
    options: LoadOptions,
    loaded: Loaded,
    json: bool,
}

impl Context {
    fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    /// The settings with the catalogue that the site's database completes.
    async fn completed_settings(&self) -> Result<Settings> {
        Replicator::complete_settings(self.settings()).await
    }
}

impl Command {
    fn overrides(&self) -> Vec<(String, String)> {
        match self {
            Self::Setup(args) => args.site.overrides(),
            Self::Init(args) => args.site.overrides(),
            Self::Upgrade(args) => args.site.overrides(),
            Self::Uninstall(args) => args.site.overrides(),
            Self::Run(args) => args.overrides(),
            Self::Sync(args) => args.site.overrides(),
            Self::Backfill(args) => args.site.overrides(),
            Self::Replay(args) => args.site.overrides(),
            Self::Status(args) => args.site.overrides(),
            Self::Check(args) => args.site.overrides(),
            Self::Quarantine(args) => args.site.overrides(),
            Self::Pause(args) => args.site.overrides(),
            Self::Resume(args) => args.site.overrides(),
            Self::Alerts(args) => args.site.overrides(),
            Self::Token(args) => args.site.overrides(),
            Self::Key(args) => args.site.overrides(),
            Self::Decrypt(args) => args.site.overrides(),
            Self::Why(args) => args.site.overrides(),
            Self::Files(args) => args.site.overrides(),
            Self::Config(args) => args.site.overrides(),
            Self::Receiver(args) => args.overrides(),
            Self::Demo(_) | Self::Explain(_) | Self::Completions(_) | Self::Man(_) => Vec::new(),
        }
    }

    /// Whether it runs until it is stopped. Then it logs more by default.
    fn is_long_lived(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Receiver(_) | Self::Demo(_))
    }

    async fn execute(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Setup(args) => setup::execute(context, args).await,
            Self::Init(args) => init::execute(context, args).await,
            Self::Upgrade(args) => upgrade::execute(context, args).await,
            Self::Uninstall(args) => uninstall::execute(context, args).await,
            Self::Run(args) => run::execute(context, args).await,
            Self::Sync(args) => sync::execute(context, args).await,
            Self::Backfill(args) => backfill::execute(context, args).await,
            Self::Replay(args) => replay::execute(context, args).await,
            Self::Status(args) => status::execute(context, args).await,
            Self::Check(args) => check::execute(context, args).await,
            Self::Quarantine(args) => quarantine::execute(context, args).await,
            Self::Pause(args) => pause::pause(context, args).await,
            Self::Resume(args) => pause::resume(context, args).await,
            Self::Alerts(args) => alerts::execute(context, args).await,
            Self::Token(args) => token::execute(context, args),
            Self::Key(args) => key::execute(context, &args),
            Self::Decrypt(args) => decrypt::execute(context, &args),
            Self::Why(args) => why::execute(context, args).await,
            Self::Files(args) => files::execute(context, args).await,
            Self::Receiver(args) => receiver::execute(context, args).await,
            Self::Demo(args) => demo::execute(context, args).await,
            Self::Config(args) => config::execute(context, &args),
            Self::Explain(args) => explain::execute(&args, context.json),
            Self::Completions(args) => shell::completions(&args),
            Self::Man(args) => shell::man(&args),
        }
    }
}

/// Runs the command and returns the process's exit code. Prints an error on stderr, and with `--json` on
/// stdout too.
pub async fn run_command(cli: Cli) -> ExitCode {
    let json = cli.global.json;
    match execute(cli).await {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error, json);
            ExitCode::from(error.exit_code())
        }
    }
}

async fn execute(cli: Cli) -> Result<ExitCode> {
    let Cli { global, command } = cli;
    logging::start_logging(global.log.as_deref(), global.verbose, command.is_long_lived())?;
    // They need no settings; `explain` also explains why these cannot be read.
    match &command {
        Command::Explain(args) => return explain::execute(args, global.json),
        Command::Completions(args) => return shell::completions(args),
        Command::Man(args) => return shell::man(args),
        _ => {}
    }
    let mut overrides = global.set;
    overrides.extend(command.overrides());
    let options = LoadOptions::of_process(global.config, overrides);
    let mut readable = options.clone();
    if matches!(command, Command::Setup(_)) {
        // It writes the file; what the file says already are answers.
        readable.config.take_if(|file| !file.exists());
    }
    let loaded = Settings::load(readable)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let json = global.json;
    let context = Context {
        options,
        loaded,
        json,
    };
    command.execute(&context).await
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed_and_each_has_examples() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let help = sub.clone().render_long_help().to_string();
            assert!(
                help.contains("Examples:\n  ") && help.contains(&format!("cloud-sync {}", sub.get_name())),
                "{}",
                sub.get_name()
            );
            assert!(
                help.contains("--config") && help.contains("--json"),
                "{}",
                sub.get_name()
            );
        }
    }

    #[test]
    fn flags_and_set_become_overrides() {
        let cli = Cli::try_parse_from([
            "cloud-sync",
            "run",
            "--set",
            "cloud.timeout=10s",
            "--database-url",
            "postgresql://h/d",
            "--listen",
            "127.0.0.1:9",
        ])
        .unwrap();
        assert_eq!(cli.global.set, [("cloud.timeout".to_owned(), "10s".to_owned())]);
        let overrides = cli.command.overrides();
        assert!(overrides.contains(&("source.database_url".to_owned(), "postgresql://h/d".to_owned())));
        assert!(overrides.contains(&("control.listen".to_owned(), "127.0.0.1:9".to_owned())));
    }
}
