//! The command line of the soak.

use clap::Parser;

/// Lets faults of every kind strike a site, its replicator and its cloud, and says whether a guarantee was
/// broken.
#[derive(Parser)]
#[command(
    name = "soak",
    override_usage = "make soak ARGS=\"[--minutes N] [--seed S]\"",
    after_help = "The last line is: kills K, faults F, changes C, violations V.\n\
                  The exit code is 1 if V is not 0, 2 for wrong usage."
)]
pub(super) struct Arguments {
    /// How long it runs, about
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = minutes)]
    pub(super) minutes: f64,
    /// The seed of writers and faults [default: random]
    #[arg(long, value_name = "S", default_value_t = rand::random(), hide_default_value = true)]
    pub(super) seed: u64,
}

fn minutes(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|minutes| *minutes > 0.0 && *minutes <= 100_000.0)
        .ok_or_else(|| "write a number of minutes, above 0 and at most 100000".to_owned())
}
