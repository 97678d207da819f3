//! What the soak is told on its command line.

pub(super) const HELP: &str = "\
Lets faults of every kind strike a site, its replicator and its cloud, and says whether a guarantee was broken.

Usage: soak [--minutes N] [--seed S]

  --minutes N   how long, about; 10 unless said otherwise
  --seed S      the seed of writers and faults; random unless said otherwise
  --help        this

The last line is: kills K, faults F, changes C, violations V. The exit code is 1 where V is not 0, 2 for wrong usage.";

pub(super) struct Arguments {
    pub(super) minutes: f64,
    pub(super) seed: u64,
}

/// The arguments; none where only help was asked for.
pub(super) fn arguments(given: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let mut arguments = Arguments {
        minutes: 10.0,
        seed: rand::random(),
    };
    let mut given = given;
    while let Some(flag) = given.next() {
        let (flag, value) = match flag.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (flag, None),
        };
        if flag == "--help" || flag == "-h" {
            return Ok(None);
        }
        if flag != "--minutes" && flag != "--seed" {
            return Err(format!("there is no flag {flag}"));
        }
        let value = value
            .or_else(|| given.next())
            .ok_or(format!("{flag} wants a number"))?;
        let wrong = || format!("{flag} wants a number, not {value:?}");
        if flag == "--seed" {
            arguments.seed = value.parse().map_err(|_| wrong())?;
        } else {
            arguments.minutes = value.parse().map_err(|_| wrong())?;
            if !(arguments.minutes > 0.0 && arguments.minutes <= 100_000.0) {
                return Err(wrong());
            }
        }
    }
    Ok(Some(arguments))
}
