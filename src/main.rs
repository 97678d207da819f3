//! The program: parses the command line, runs the command, exits.

use std::fmt::Arguments;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cloud_sync::cli::{self, Cli};

fn main() -> ExitCode {
    // One TLS provider for all: otherwise reqwest, sqlx and tokio-postgres could each choose another.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        print_error(format_args!("cannot set up TLS: a provider is already installed"));
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(cli::run_command(cli));
            // Work that cannot be interrupted, such as a DNS lookup, must not delay the exit.
            runtime.shutdown_timeout(Duration::from_secs(1));
            code
        }
        Err(error) => {
            print_error(format_args!("cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn print_error(error: Arguments<'_>) {
    // If stderr fails, nothing is left to report to.
    let _ = writeln!(std::io::stderr(), "error: {error}");
}
