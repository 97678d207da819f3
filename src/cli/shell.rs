//! `completions` and `man`: what a shell and `man` need to know of the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, output};
use crate::error::{Error, Result};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cloud-sync completions bash > /etc/bash_completion.d/cloud-sync
  cloud-sync completions zsh > /usr/share/zsh/vendor-completions/_cloud-sync
  cloud-sync completions fish > ~/.config/fish/completions/cloud-sync.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cloud-sync man                       writes all pages into the working directory
  cloud-sync man --dir /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// The folder that gets the pages, one for each command
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    dir: PathBuf,
}

/// Prints the completions of a shell.
///
/// # Errors
/// stdout cannot be written.
pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cloud-sync", &mut text);
    output::print_text(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the manual's pages.
///
/// # Errors
/// A file cannot be written.
pub(super) fn man(args: &ManArgs) -> Result<ExitCode> {
    let failed = |error| {
        Error::local(format!("write the manual to {}", args.dir.display()), error)
            .remedy("name a folder that exists and can be written by --dir")
    };
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
