//! Parses, wires, exits.

use std::process::ExitCode;

use clap::Parser;
use cloud_sync::cli::{self, Cli};

fn main() -> ExitCode {
    // The only provider: without it reqwest, sqlx and tokio-postgres could each want another.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("error: cannot set up TLS: a provider is already installed");
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(cli)),
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}
