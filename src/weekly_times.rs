//! Times of the week on the wall clock of the site: `mon-fri 22:00-06:00`.
//!
//! Where daylight saving repeats or skips an hour, what a clock on the wall shows counts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::{DateTime, Time, Weekday};
use jiff::{SignedDuration, ToSpan};
use serde::{Deserialize, Serialize};

/// Minutes of a day.
const DAY: u16 = 24 * 60;

const WEEK: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// What `night` stands for.
const NIGHT: &str = "22:00-06:00";

/// A time span on some days of the week; it may end on the day after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeeklySpan {
    /// By the day's index from Monday.
    days: [bool; 7],
    /// Minutes of the day; where the end is not after the beginning, it is on the next day.
    from: u16,
    to: u16,
}

impl WeeklySpan {
    pub(crate) fn holds_at(&self, now: DateTime) -> bool {
        let minute = now.hour().cast_unsigned() as u16 * 60 + now.minute().cast_unsigned() as u16;
        let day = now.weekday().to_monday_zero_offset() as usize;
        if self.from < self.to {
            return self.days[day] && (self.from..self.to).contains(&minute);
        }
        // It began today, or yesterday.
        (self.days[day] && minute >= self.from) || (self.days[(day + 6) % 7] && minute < self.to)
    }

    /// How long it is until the span begins next.
    fn begins_in(&self, now: DateTime) -> Option<SignedDuration> {
        let hour = i8::try_from(self.from / 60).ok()?;
        let minute = i8::try_from(self.from % 60).ok()?;
        let begins = (0..=7).filter_map(|days| {
            let date = now.date().checked_add(days.days()).ok()?;
            let begin = date.to_datetime(Time::new(hour, minute, 0, 0).ok()?);
            let on_such_a_day = self.days[date.weekday().to_monday_zero_offset() as usize];
            (on_such_a_day && begin > now).then(|| begin.duration_since(now))
        });
        begins.min()
    }
}

impl FromStr for WeeklySpan {
    type Err = String;

    /// Reads `22:00-06:00`, or `mon-fri 22:00-06:00`.
    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (days, times) = match words.as_slice() {
            [times] => ([true; 7], times),
            [named, times] => (days(named)?, times),
            _ => return Err(format!("has {text:?}, which is not as in mon-fri 22:00-06:00")),
        };
        let (from, to) = times
            .split_once('-')
            .filter(|(from, to)| from.contains(':') && to.contains(':'))
            .ok_or_else(|| format!("has {times:?}, which is not as in 07:00-18:00"))?;
        Ok(Self {
            days,
            from: minute_of_day(from)? % DAY,
            to: minute_of_day(to)?,
        })
    }
}

impl fmt::Display for WeeklySpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = WEEK.iter().zip(self.days).filter(|(_, holds)| *holds);
        let days: Vec<&str> = days.map(|((name, _), _)| *name).collect();
        let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{} {}-{}", days.join(","), time(self.from), time(self.to))
    }
}

fn days(text: &str) -> Result<[bool; 7], String> {
    let index = |name: &str| {
        let found = WEEK
            .iter()
            .position(|(known, _)| known.eq_ignore_ascii_case(name));
        found.ok_or_else(|| format!("has the day {name:?}; days are mon, tue, wed, thu, fri, sat, sun"))
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (index(first)?, index(last)?),
            None => (index(part)?, index(part)?),
        };
        let mut day = first;
        days[day] = true;
        while day != last {
            day = (day + 1) % 7;
            days[day] = true;
        }
    }
    Ok(days)
}

/// The minutes from midnight to a time of day; 24:00 is the day's end.
fn minute_of_day(text: &str) -> Result<u16, String> {
    let wrong = || format!("has the time {text:?}, which is not as in 07:30");
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    let (hour, minute): (u16, u16) = match (hour.parse(), minute.parse()) {
        (Ok(hour), Ok(minute)) => (hour, minute),
        _ => return Err(wrong()),
    };
    if hour <= 24 && minute < 60 && hour * 60 + minute <= DAY {
        Ok(hour * 60 + minute)
    } else {
        Err(wrong())
    }
}

/// Some times of the week: `night`, or spans that are separated by semicolons, as in
/// `mon-fri 20:00-07:00; sat,sun 00:00-24:00`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct WeeklyTimes {
    spans: Vec<WeeklySpan>,
    /// As it was written.
    text: String,
}

impl WeeklyTimes {
    /// Whether this local time is one of them.
    pub(crate) fn hold_at(&self, now: DateTime) -> bool {
        self.spans.iter().any(|span| span.holds_at(now))
    }

    /// How long it is until they begin next, after a moment that is none of them.
    pub(crate) fn begin_in(&self, now: DateTime) -> Duration {
        let begins = self.spans.iter().filter_map(|span| span.begins_in(now)).min();
        begins.map_or(Duration::ZERO, SignedDuration::unsigned_abs)
    }
}

impl FromStr for WeeklyTimes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let spans: Vec<WeeklySpan> = text
            .split(';')
            .map(str::trim)
            .filter(|span| !span.is_empty())
            .map(|span| if span == "night" { NIGHT } else { span }.parse())
            .collect::<Result<_, _>>()?;
        if spans.is_empty() {
            return Err("must not be empty".to_owned());
        }
        Ok(Self {
            spans,
            text: text.trim().to_owned(),
        })
    }
}

impl TryFrom<String> for WeeklyTimes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error| format!("when {error}"))
    }
}

impl From<WeeklyTimes> for String {
    fn from(times: WeeklyTimes) -> Self {
        times.text
    }
}

impl fmt::Display for WeeklyTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-30 is a Monday.
    fn at(text: &str) -> DateTime {
        text.parse().unwrap()
    }

    #[test]
    fn times_hold_and_begin_by_day_and_hour() {
        let times: WeeklyTimes = "mon-fri 22:00-06:00; sun 00:00-24:00".parse().unwrap();
        for (now, begins) in [
            ("2026-11-30T21:59:30", Some(30)),
            ("2026-11-30T22:00", None),
            ("2026-12-01T05:59", None),
            ("2026-12-01T06:00", Some(16 * 3600)),
            // Friday's night ends on Saturday, and Sunday is next.
            ("2026-12-05T05:00", None),
            ("2026-12-05T06:00", Some(18 * 3600)),
            ("2026-12-06T23:59", None),
            ("2026-12-07T00:00", Some(22 * 3600)),
        ] {
            let now = at(now);
            assert_eq!(times.hold_at(now), begins.is_none(), "{now}");
            if let Some(seconds) = begins {
                assert_eq!(times.begin_in(now), Duration::from_secs(seconds), "{now}");
            }
        }
        let night: WeeklyTimes = "night".parse().unwrap();
        assert!(night.hold_at(at("2026-11-30T23:00")) && !night.hold_at(at("2026-11-30T12:00")));
    }

    #[test]
    fn what_is_no_time_is_refused_with_the_word() {
        for (text, word) in [
            ("", "empty"),
            ("nights", "nights"),
            ("mond 22:00-06:00", "mond"),
            ("22-06", "22-06"),
            ("22:00-25:00", "25:00"),
            ("99999:00-06:00", "99999:00"),
        ] {
            let why = text.parse::<WeeklyTimes>().unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
