//! How long a server itself took to apply a request: the header `Server-Timing: apply;dur=1.5`, in
//! milliseconds.
//!
//! Source: <https://www.w3.org/TR/server-timing/>.

use std::time::Duration;

use reqwest::header::HeaderMap;

/// The header's name.
pub const SERVER_TIMING: &str = "server-timing";

/// The metric: the time from when the server has the whole body to its commit.
const APPLY: &str = "apply";

/// The header's value for this time.
pub fn write_applied(took: Duration) -> String {
    format!("{APPLY};dur={:.3}", took.as_secs_f64() * 1000.0)
}

/// The time that the server took to apply the request; `None` if no header says so in a form that can be
/// read.
pub fn read_applied(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(SERVER_TIMING).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .find_map(applied_in_value)
}

fn applied_in_value(value: &str) -> Option<Duration> {
    split_unquoted(value, ',').into_iter().find_map(|metric| {
        let mut parts = split_unquoted(metric, ';').into_iter();
        if parts.next()?.trim() != APPLY {
            return None;
        }
        let duration = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("dur").then_some(value)
        })?;
        let ms: f64 = duration.trim().trim_matches('"').parse().ok()?;
        Duration::try_from_secs_f64(ms / 1000.0).ok()
    })
}

/// The pieces between separators that are not within quotes.
fn split_unquoted(text: &str, separator: char) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(|letter| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match letter {
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            other => return other == separator && !quoted,
        }
        false
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_ms(values: &[&str]) -> Option<f64> {
        let headers = values
            .iter()
            .map(|value| (SERVER_TIMING.parse().unwrap(), value.parse().unwrap()));
        let headers: HeaderMap = headers.collect();
        read_applied(&headers).map(|took| took.as_secs_f64() * 1000.0)
    }

    #[test]
    fn the_time_is_read_as_it_is_written() {
        let value = write_applied(Duration::from_micros(1234));
        assert_eq!(
            (value.as_str(), read_ms(&[&value])),
            ("apply;dur=1.234", Some(1.234))
        );
    }

    #[test]
    fn the_time_is_found_among_others() {
        assert_eq!(read_ms(&["apply;dur=1.5"]), Some(1.5));
        assert_eq!(
            read_ms(&[
                "miss, db;dur=53",
                "cache;desc=\"Read\" , apply ; desc=x; DUR=\"2\""
            ]),
            Some(2.0)
        );
        assert_eq!(
            read_ms(&["a;desc=\"x, apply;dur=9 \\\", apply;dur=8\", apply;dur=1"]),
            Some(1.0)
        );
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        for value in [
            "",
            "apply",
            "apply;dur=",
            "apply;dur=-1",
            "apply;dur=nan",
            "apply;dur=inf",
            "applying;dur=1",
            "apply;desc=\"dur=1",
        ] {
            assert_eq!(read_ms(&[value]), None, "{value}");
        }
        assert_eq!(read_ms(&[]), None);
    }
}
