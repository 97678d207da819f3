//! Progress of a long pass, on stderr: bars on a terminal, else a line for each entity.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use crate::reconcile::Observer;

/// Shows the progress of a pass. `verb` is what happens to rows: `compared`, `backfilled`.
pub(super) struct ProgressDisplay {
    verb: &'static str,
    bars: bool,
    current: Mutex<Option<EntityProgress>>,
}

struct EntityProgress {
    name: String,
    bar: Option<ProgressBar>,
    compared: u64,
    pushed: u64,
}

impl ProgressDisplay {
    pub(super) fn new(verb: &'static str) -> Self {
        Self {
            verb,
            bars: std::io::stderr().is_terminal(),
            current: Mutex::default(),
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<EntityProgress>> {
        self.current
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Observer for ProgressDisplay {
    fn begin(&self, entity: &str, rows: u64) {
        let bar = self.bars.then(|| {
            let style = ProgressStyle::with_template("{msg:<20} {bar:30} {pos}/{len} rows  {per_sec}  {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(rows)
                .with_style(style)
                .with_message(entity.to_owned())
        });
        *self.current() = Some(EntityProgress {
            name: entity.to_owned(),
            bar,
            compared: 0,
            pushed: 0,
        });
    }

    fn advance(&self, compared: u64, pushed: u64) {
        if let Some(entity) = &mut *self.current() {
            entity.compared += compared;
            entity.pushed += pushed;
            if let Some(bar) = &entity.bar {
                bar.inc(compared);
            }
        }
    }

    fn end(&self, _entity: &str) {
        let Some(entity) = self.current().take() else {
            return;
        };
        if let Some(bar) = &entity.bar {
            bar.finish_and_clear();
        }
        // If stderr is closed, nobody reads it.
        let _ = writeln!(
            std::io::stderr(),
            "{}: {} rows {}, {} pushed",
            entity.name,
            entity.compared,
            self.verb,
            entity.pushed
        );
    }
}
