//! Progress of a long pass: bars on a terminal, a plain line an entity elsewhere; both on stderr.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use crate::reconcile::Observer;

/// Shows a pass; `verb` is what happens to rows: `compared`, `backfilled`.
pub(super) struct ProgressDisplay {
    verb: &'static str,
    bars: bool,
    now: Mutex<Option<EntityProgress>>,
}

struct EntityProgress {
    name: String,
    bar: Option<ProgressBar>,
    looked: u64,
    pushed: u64,
}

impl ProgressDisplay {
    pub(super) fn new(verb: &'static str) -> Self {
        Self {
            verb,
            bars: std::io::stderr().is_terminal(),
            now: Mutex::default(),
        }
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Option<EntityProgress>> {
        self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
        *self.now() = Some(EntityProgress {
            name: entity.to_owned(),
            bar,
            looked: 0,
            pushed: 0,
        });
    }

    fn advance(&self, looked: u64, pushed: u64) {
        if let Some(entity) = &mut *self.now() {
            entity.looked += looked;
            entity.pushed += pushed;
            if let Some(bar) = &entity.bar {
                bar.inc(looked);
            }
        }
    }

    fn end(&self, _entity: &str) {
        let Some(entity) = self.now().take() else { return };
        if let Some(bar) = &entity.bar {
            bar.finish_and_clear();
        }
        // Whoever closed stderr does not want to know.
        let _ = writeln!(
            std::io::stderr(),
            "{}: {} rows {}, {} pushed",
            entity.name,
            entity.looked,
            self.verb,
            entity.pushed
        );
    }
}
