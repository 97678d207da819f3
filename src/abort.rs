//! Crash points: named places in the code at which a test aborts the process, to show that nothing is lost
//! there.
//!
//! `CLOUD_SYNC_ABORT=after a commit` aborts the process when it reaches the point of that name for the first
//! time, `CLOUD_SYNC_ABORT=after a commit#3` when it reaches it for the third time. Release builds have no
//! crash points.

/// Every crash point, in the order in which a change passes them; then those of the other lanes.
pub const POINTS: [&str; 23] = [
    "after a read",
    "after a batch behind another",
    "before a send",
    "amid the answer",
    "after the answer",
    "after the delivery",
    "before the hand-over",
    "before a commit",
    "amid a commit",
    "after a commit",
    "before the mirror",
    "after the mirror",
    "before a trim",
    "amid a trim",
    "after a trim",
    "amid a backfill",
    "after a page of a backfill",
    "amid a sync",
    "after a sync's capture",
    "amid an upload",
    "after an upload",
    "before an upload is noted",
    "after an upload is noted",
];

/// Aborts the process here if the environment names this point.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(debug_assertions)]
    armed::come_by(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    static ARMED: LazyLock<Option<(String, AtomicI64)>> = LazyLock::new(|| {
        let value = std::env::var("CLOUD_SYNC_ABORT").ok()?;
        let (name, times) = value.split_once('#').unwrap_or((&value, "1"));
        assert!(super::POINTS.contains(&name), "there is no point {name:?}");
        let times = times
            .parse()
            .unwrap_or_else(|_| panic!("{times:?} is not a number"));
        Some((name.to_owned(), AtomicI64::new(times)))
    });

    pub(super) fn come_by(name: &str) {
        debug_assert!(super::POINTS.contains(&name));
        if let Some((armed, left)) = &*ARMED
            && armed == name
            && left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            std::process::abort();
        }
    }
}
