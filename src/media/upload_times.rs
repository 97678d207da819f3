//! Whether a finished file goes now, by the settings of its column.

use std::time::Duration;

use jiff::Zoned;

use super::file_outcome::Deferral;
use crate::catalogue::FileTiming;
use crate::source::file_records::{FileStamp, NOT_NOW, TOO_NEW};

/// How often it is looked whether files may still go, and after how long at most whether they may again: the
/// clock may be set.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(3600);

/// Why a finished file does not go yet; `None` if it does.
pub(super) fn not_yet(timing: FileTiming<'_>, stamp: &FileStamp, now: &Zoned) -> Option<Deferral> {
    let microseconds = now.timestamp().as_microsecond() - stamp.modified_us;
    // One of the future has no age.
    let age = Duration::from_micros(microseconds.max(0).cast_unsigned());
    let (why, wait) = match (timing.after, timing.when) {
        (Some(after), _) if age < after.age => (TOO_NEW, (after.age - age).min(LONGEST_LOOK)),
        (_, Some(when)) if !when.hold_at(now.datetime()) => {
            (NOT_NOW, when.begin_in(now.datetime()).min(LONGEST_LOOK))
        }
        _ => return None,
    };
    Some(Deferral::waiting(why, wait.as_secs_f64()).with_size(stamp.size))
}

/// Waits until files may not go any more; for ever if they always may.
pub(super) async fn until_not_now(timing: FileTiming<'_>) {
    let Some(when) = timing.when else {
        return std::future::pending().await;
    };
    while when.hold_at(Zoned::now().datetime()) {
        tokio::time::sleep(LOOK_AT_CLOCK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::FileAge;
    use crate::weekly_times::WeeklyTimes;

    #[test]
    fn a_file_goes_when_it_is_old_enough_and_at_its_times() {
        let after = FileAge::try_from("24h".to_owned()).unwrap();
        let when: WeeklyTimes = "night".parse().unwrap();
        let timing = FileTiming {
            after: Some(&after),
            when: Some(&when),
        };
        let now: Zoned = "2026-11-30T21:30:00[Europe/Berlin]".parse().unwrap();
        let waits = |hours_old: i64| {
            let stamp = FileStamp {
                size: 1,
                modified_us: now.timestamp().as_microsecond() - hours_old * 3_600_000_000,
                changed_us: 0,
                inode: 1,
            };
            not_yet(timing, &stamp, &now).map(|deferral| (deferral.why, deferral.seconds))
        };
        let waiting = |why: &str, seconds| Some((why.to_owned(), seconds));
        assert_eq!(waits(-5), waiting(TOO_NEW, 3600.0));
        assert_eq!(waits(23), waiting(TOO_NEW, 3600.0));
        assert_eq!(waits(24), waiting(NOT_NOW, 1800.0));
        assert!(not_yet(FileTiming::default(), &stamp_of_now(&now), &now).is_none());
    }

    fn stamp_of_now(now: &Zoned) -> FileStamp {
        FileStamp {
            size: 1,
            modified_us: now.timestamp().as_microsecond(),
            changed_us: 0,
            inode: 1,
        }
    }
}
