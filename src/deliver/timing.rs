//! What a server tells of its own time: `Server-Timing: apply;dur=1.5`, in milliseconds.
//!
//! Source: <https://www.w3.org/TR/server-timing/>.

use std::time::Duration;

use reqwest::header::HeaderMap;

/// The metric for the time from the request at hand to the server's commit.
const APPLY: &str = "apply";

/// What the server took to apply the request; none where it does not say so, or not so that it can be understood.
pub(super) fn applied(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("server-timing").iter();
    values.filter_map(|value| value.to_str().ok()).find_map(in_value)
}

fn in_value(value: &str) -> Option<Duration> {
    split(value, ',').into_iter().find_map(|metric| {
        let mut parts = split(metric, ';').into_iter();
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
fn split(text: &str, separator: char) -> Vec<&str> {
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

    fn told(values: &[&str]) -> Option<f64> {
        let headers = values.iter().map(|value| {
            (
                reqwest::header::HeaderName::from_static("server-timing"),
                value.parse().unwrap(),
            )
        });
        let headers: HeaderMap = headers.collect();
        applied(&headers).map(|took| took.as_secs_f64() * 1000.0)
    }

    #[test]
    fn the_time_is_found_among_others() {
        assert_eq!(told(&["apply;dur=1.5"]), Some(1.5));
        assert_eq!(
            told(&[
                "miss, db;dur=53",
                "cache;desc=\"Read\" , apply ; desc=x; DUR=\"2\""
            ]),
            Some(2.0)
        );
        assert_eq!(
            told(&["a;desc=\"x, apply;dur=9 \\\", apply;dur=8\", apply;dur=1"]),
            Some(1.0)
        );
    }

    #[test]
    fn what_cannot_be_understood_is_not_told() {
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
            assert_eq!(told(&[value]), None, "{value}");
        }
        assert_eq!(told(&[]), None);
    }
}
