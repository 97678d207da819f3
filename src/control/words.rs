//! Numbers, sizes and times in words.

use jiff::{Timestamp, tz::TimeZone};

use super::status::FileCounts;
use crate::media::BudgetStatus;

/// A number with its thousands apart: `4,210`.
pub(crate) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with its noun: `1 change`, `2 changes`.
pub(crate) fn count(value: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(value), if value == 1 { one } else { many })
}

/// `waits` or `wait`, as the number asks for.
pub(crate) fn verb<'a>(value: u64, one: &'a str, many: &'a str) -> &'a str {
    if value == 1 { one } else { many }
}

/// A number of bytes: `3.00 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A span of time, in the unit that says enough: `12 minutes`.
pub(crate) fn span(seconds: f64) -> String {
    let whole = |value: f64, one: &str, many: &str| count(value.round().max(0.0) as u64, one, many);
    match seconds {
        seconds if seconds < 10.0 && seconds.fract() >= 0.05 => format!("{seconds:.1} seconds"),
        seconds if seconds < 120.0 => whole(seconds, "second", "seconds"),
        seconds if seconds < 7_200.0 => whole(seconds / 60.0, "minute", "minutes"),
        seconds if seconds < 172_800.0 => whole(seconds / 3_600.0, "hour", "hours"),
        seconds if seconds < 31_536_000.0 => whole(seconds / 86_400.0, "day", "days"),
        _ => "more than a year".to_owned(),
    }
}

/// A time of the recent past or the near future, of its day if that is not today: `14:03:12`.
pub(crate) fn time(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone.clone()));
    let form = if at.date() == now.date() {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M"
    };
    at.strftime(form).to_string()
}

/// What a budget of bytes allows, and what has left of it.
pub(crate) fn budget(budget: &BudgetStatus) -> String {
    let of = |bytes, limit: Option<u64>, when| {
        limit.map(|limit| format!("{} of {} have left {when}", size(bytes), size(limit)))
    };
    let day = of(budget.day_bytes, budget.day_limit, "today");
    let month = of(budget.month_bytes, budget.month_limit, "this month");
    let used = day.into_iter().chain(month).collect::<Vec<_>>().join(", ");
    match budget.used_up() {
        Some(why) => format!("no file goes now: {why}; {used}"),
        None => used,
    }
}

/// How many bytes of files are still to be sent, how fast they go, and when all of them are sent; `None` if
/// nothing is to be sent, or none went of late.
pub(crate) fn forecast(files: &FileCounts, now: Timestamp, zone: &TimeZone) -> Option<String> {
    let bytes = files.bytes_to_send.filter(|bytes| *bytes > 0)?;
    let rate = files.bytes_per_second?;
    let until = files.caught_up_at.map_or_else(
        || "it takes more than two months".to_owned(),
        |at| format!("all is sent at about {}", time(at, now, zone)),
    );
    Some(format!(
        "{} are to be sent, {} a second: {until}",
        size(bytes),
        size(rate)
    ))
}

/// Seconds from one time to another; 0 if it comes first.
pub(crate) fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_thousands_apart() {
        let words = [0, 7, 999, 1000, 4210, 1_234_567].map(number);
        assert_eq!(words, ["0", "7", "999", "1,000", "4,210", "1,234,567"]);
        assert_eq!(count(1, "change", "changes"), "1 change");
        assert_eq!(count(4210, "change", "changes"), "4,210 changes");
    }

    #[test]
    fn spans_have_a_unit_that_says_enough() {
        let words = [0.0, 0.31, 1.0, 9.96, 45.0, 720.0, 10_800.0, 777_600.0, 4e7].map(span);
        assert_eq!(
            words,
            [
                "0 seconds",
                "0.3 seconds",
                "1 second",
                "10.0 seconds",
                "45 seconds",
                "12 minutes",
                "3 hours",
                "9 days",
                "more than a year"
            ]
        );
    }

    #[test]
    fn a_budget_says_what_is_left_and_whether_files_wait_for_it() {
        let mut of_day = BudgetStatus {
            day_limit: Some(2 << 30),
            day_bytes: 1 << 30,
            ..BudgetStatus::default()
        };
        assert_eq!(budget(&of_day), "1.00 GiB of 2.00 GiB have left today");
        of_day.day_bytes = 2 << 30;
        assert_eq!(
            budget(&of_day),
            "no file goes now: the bytes of today are used up (files.budget); files go on tomorrow; 2.00 GiB of \
             2.00 GiB have left today"
        );
    }

    #[test]
    fn a_forecast_needs_bytes_and_a_rate() {
        let now = "2026-11-26T14:00:00Z".parse().unwrap();
        let mut files = FileCounts {
            bytes_to_send: Some(60 << 20),
            bytes_per_second: Some(1 << 20),
            caught_up_at: Some("2026-11-26T14:01:00Z".parse().unwrap()),
            ..FileCounts::default()
        };
        let words = |files: &FileCounts| forecast(files, now, &TimeZone::UTC);
        assert_eq!(
            words(&files).as_deref(),
            Some("60.00 MiB are to be sent, 1.00 MiB a second: all is sent at about 14:01:00")
        );
        files.bytes_per_second = None;
        assert_eq!(words(&files), None);
        files.bytes_to_send = Some(0);
        assert_eq!(words(&files), None);
    }

    #[test]
    fn a_time_of_another_day_has_its_date() {
        let now = "2026-11-26T14:00:00Z".parse().unwrap();
        let at = |text: &str| time(text.parse().unwrap(), now, &TimeZone::UTC);
        assert_eq!(at("2026-11-26T02:10:07Z"), "02:10:07");
        assert_eq!(at("2026-11-25T22:10:07Z"), "2026-11-25 22:10");
    }
}
