//! Days and dates of the Gregorian calendar, and the epochs of the two sides.
//!
//! Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".

/// From 1970-01-01, where ours begin, to 2000-01-01, where PostgreSQL's do.
pub(crate) const DAYS_TO_2000: i64 = 10_957;

pub(crate) const MICROS_A_DAY: i64 = 86_400_000_000;

/// The same as [`DAYS_TO_2000`], in microseconds.
pub(crate) const MICROS_TO_2000: i64 = DAYS_TO_2000 * MICROS_A_DAY;

/// From 0000-03-01 to 1970-01-01. Years begin in March here, so that the leap day is the last one.
const DAYS_TO_1970: i64 = 719_468;

/// Days of 400 years.
const DAYS_OF_CYCLE: i64 = 146_097;

/// How many days a month has.
pub(crate) fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date, which must be one: its month is from 1 to 12.
pub(crate) fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let shifted_year = if month > 2 { year } else { year - 1 };
    let cycle = shifted_year.div_euclid(400);
    let year_of_cycle = shifted_year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year;
    cycle * DAYS_OF_CYCLE + day_of_cycle - DAYS_TO_1970
}

/// Year, month and day of the date so many days after 1970-01-01. The year before 1 is 0.
pub(crate) fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + DAYS_TO_1970;
    let cycle = shifted.div_euclid(DAYS_OF_CYCLE);
    let day_of_cycle = shifted.rem_euclid(DAYS_OF_CYCLE);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_cycle + cycle * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_one_of_its_days() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(DAYS_TO_2000), (2000, 1, 1));
        assert_eq!(days_from_civil(-4712, 1, 1), -2_440_550);
        for days in (-2_440_550..3_000_000).step_by(37) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
            assert!((1..=12).contains(&month) && (1..=days_in_month(year, month)).contains(&day));
        }
    }
}
