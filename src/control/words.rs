//! Numbers, sizes and times in words.

use jiff::{Timestamp, tz::TimeZone};

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
    fn a_time_of_another_day_has_its_date() {
        let now = "2026-11-26T14:00:00Z".parse().unwrap();
        let at = |text: &str| time(text.parse().unwrap(), now, &TimeZone::UTC);
        assert_eq!(at("2026-11-26T02:10:07Z"), "02:10:07");
        assert_eq!(at("2026-11-25T22:10:07Z"), "2026-11-25 22:10");
    }
}
