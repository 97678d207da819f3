//! Schedules in plain words: `hourly`, `daily at 02:00`, `every 6 hours`, `weekdays at 18:30`,
//! `mon,thu at 07:15`. Each is short for a cron expression.

/// The days of the week, as cron counts them.
const DAYS: [(&str, u8); 7] = [
    ("sunday", 0),
    ("monday", 1),
    ("tuesday", 2),
    ("wednesday", 3),
    ("thursday", 4),
    ("friday", 5),
    ("saturday", 6),
];

/// The cron expression that the words stand for; `None` if they are no words of ours.
///
/// # Errors
/// What is wrong with words that begin like a schedule.
pub(super) fn cron_of(text: &str) -> Result<Option<String>, String> {
    let lower = text.trim().to_ascii_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let cron = match words.as_slice() {
        ["hourly"] | ["every", "hour"] => "0 * * * *".to_owned(),
        ["hourly", "at", minute] => {
            let minute = minute
                .strip_prefix(':')
                .and_then(|minute| minute.parse::<u8>().ok());
            let minute = minute
                .filter(|minute| *minute < 60)
                .ok_or("has a minute that is not as in :15")?;
            format!("{minute} * * * *")
        }
        ["every", number, "hours" | "hour"] => {
            let hours = divisor(number, 24, "hours", "a day")?;
            format!("0 {} * * *", every(hours))
        }
        ["every", number, "minutes" | "minute"] => {
            let minutes = divisor(number, 60, "minutes", "an hour")?;
            format!("{} * * * *", every(minutes))
        }
        [days, "at", time] => {
            let Some(days) = days_of_week(days)? else {
                return Ok(None);
            };
            let (hour, minute) = time_of_day(time)?;
            format!("{minute} {hour} * * {days}")
        }
        [first, ..] if *first == "every" || *first == "hourly" || days_of_week(first)?.is_some() => {
            return Err("is not as in \"every 6 hours\" or \"daily at 02:00\"".to_owned());
        }
        _ => return Ok(None),
    };
    Ok(Some(cron))
}

/// Cron's field for every so many.
fn every(number: u8) -> String {
    match number {
        1 => "*".to_owned(),
        number => format!("*/{number}"),
    }
}

/// A number that divides `whole`: otherwise the last span of a day or an hour would be shorter.
fn divisor(text: &str, whole: u8, unit: &str, of: &str) -> Result<u8, String> {
    let number = text.parse::<u8>().ok();
    number
        .filter(|number| (1..whole).contains(number) && whole.is_multiple_of(*number))
        .ok_or_else(|| {
            let all: Vec<String> = (1..whole)
                .filter(|number| whole.is_multiple_of(*number))
                .map(|number| number.to_string())
                .collect();
            format!(
                "has a number of {unit} that does not divide {of}: {} do",
                all.join(", ")
            )
        })
}

/// Cron's field of days; `None` if the text names no day.
fn days_of_week(text: &str) -> Result<Option<String>, String> {
    match text {
        "daily" => return Ok(Some("*".to_owned())),
        "weekdays" => return Ok(Some("1-5".to_owned())),
        "weekends" => return Ok(Some("0,6".to_owned())),
        _ => {}
    }
    let numbers: Vec<Option<u8>> = text.split(',').map(day).collect();
    if numbers.iter().all(Option::is_none) {
        return Ok(None);
    }
    let numbers = numbers
        .into_iter()
        .map(|number| number.map(|number| number.to_string()))
        .collect::<Option<Vec<String>>>();
    numbers
        .map(|numbers| Some(numbers.join(",")))
        .ok_or_else(|| "names a day that is none: days are mon, tue, wed, thu, fri, sat, sun".to_owned())
}

/// A day by its name, its plural or its first three letters.
fn day(text: &str) -> Option<u8> {
    let found = DAYS.iter().find(|(name, _)| {
        text == *name || text == &name[..3] || text.strip_suffix('s').is_some_and(|single| single == *name)
    });
    found.map(|(_, number)| *number)
}

fn time_of_day(text: &str) -> Result<(u8, u8), String> {
    let wrong = || format!("has the time {text:?}, which is not as in 02:00");
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    match (hour.parse::<u8>(), minute.parse::<u8>()) {
        (Ok(hour), Ok(minute @ 0..60)) if hour < 24 && text.len() >= 4 => Ok((hour, minute)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_for_cron_expressions() {
        for (text, cron) in [
            ("hourly", "0 * * * *"),
            ("Hourly", "0 * * * *"),
            ("every hour", "0 * * * *"),
            ("hourly at :15", "15 * * * *"),
            ("every 6 hours", "0 */6 * * *"),
            ("every 1 hour", "0 * * * *"),
            ("every 15 minutes", "*/15 * * * *"),
            ("every 1 minute", "* * * * *"),
            ("daily at 02:00", "0 2 * * *"),
            ("  daily   at 23:59 ", "59 23 * * *"),
            ("weekdays at 18:30", "30 18 * * 1-5"),
            ("weekends at 7:05", "5 7 * * 0,6"),
            ("sunday at 03:00", "0 3 * * 0"),
            ("Mondays at 03:00", "0 3 * * 1"),
            ("mon,thu at 03:00", "0 3 * * 1,4"),
        ] {
            assert_eq!(cron_of(text), Ok(Some(cron.to_owned())), "{text}");
        }
        for text in ["0 * * * *", "@daily", "", "sometimes", "noon"] {
            assert_eq!(cron_of(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            (
                "every 5 hours",
                "hours that does not divide a day: 1, 2, 3, 4, 6, 8, 12 do",
            ),
            ("every 7 minutes", "minutes that does not divide an hour"),
            ("every 0 hours", "divide"),
            ("every 24 hours", "divide"),
            ("daily at 24:00", "\"24:00\""),
            ("daily at 2", "\"2\""),
            ("daily at noon", "\"noon\""),
            ("weekdays at 18:60", "\"18:60\""),
            ("mon,foo at 03:00", "names a day that is none"),
            ("hourly at 15", ":15"),
            ("every now and then", "every 6 hours"),
            ("daily", "daily at 02:00"),
        ] {
            let why = cron_of(text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
