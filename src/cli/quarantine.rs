//! `quarantine`: decides on changes that the cloud refused for good.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Context, SiteFlags, without_engine};
use crate::change::Position;
use crate::error::Result;

const EXAMPLES: &str = "\
Examples:
  cloud-sync quarantine list
  cloud-sync quarantine list --entity leaves --json
  cloud-sync quarantine show 120017
  cloud-sync quarantine retry 120017 120018
  cloud-sync quarantine retry --all
  cloud-sync quarantine discard 120017";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    pub(super) action: Action,
    #[command(flatten)]
    pub(super) site: SiteFlags,
}

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// The refused changes, with the cloud's reason
    List {
        /// Only this entity
        #[arg(long, value_name = "NAME")]
        entity: Option<String>,
        /// At most this many, the oldest first
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// One refused change in full, its row included
    Show {
        /// Its position, as list tells it
        #[arg(value_parser = position)]
        position: Position,
    },
    /// Send changes again: each row's present state
    Retry(Chosen),
    /// Give changes up: the cloud stays without them
    Discard(Chosen),
}

/// Which refused changes are meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Chosen {
    /// Their positions, as list tells them
    #[arg(value_name = "POSITION", value_parser = position)]
    pub(super) positions: Vec<Position>,
    /// All of them
    #[arg(long)]
    pub(super) all: bool,
}

fn position(text: &str) -> std::result::Result<Position, String> {
    text.parse()
        .map(Position)
        .map_err(|_| "a position is a whole number, as list tells it".to_owned())
}

pub(super) async fn execute(_context: &Context, _args: QuarantineArgs) -> Result<ExitCode> {
    Err(without_engine("quarantine"))
}
