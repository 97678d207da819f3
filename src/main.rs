//! Parses, wires, exits.

use std::fmt::Arguments;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cloud_sync::cli::{self, Cli};

fn main() -> ExitCode {
    // The only provider: without it reqwest, sqlx and tokio-postgres could each want another.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tell(format_args!("cannot set up TLS: a provider is already installed"));
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(cli::run_command(cli));
            // Work that cannot be broken off, such as asking for a name's address, must not hold the end up.
            runtime.shutdown_timeout(Duration::from_secs(1));
            code
        }
        Err(error) => {
            tell(format_args!("cannot start: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn tell(error: Arguments<'_>) {
    // There is no place left to tell that stderr takes nothing.
    let _ = writeln!(std::io::stderr(), "error: {error}");
}
