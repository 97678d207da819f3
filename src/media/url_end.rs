//! When a signed URL ends: the site renews it before, as long as the row is there.
//!
//! The ends of these URLs are known: `expires=` or `Expires=` in seconds since 1970 (the reference receiver,
//! Laravel, CloudFront), version 4 signatures of S3 and Google Cloud Storage, and Azure's `se=`.

use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use url::Url;

/// When the URL ends; `None` if it holds for ever, as far as it tells.
pub(super) fn url_end(url: &str) -> Option<Timestamp> {
    let url = Url::parse(url).ok()?;
    let value = |wanted: &str| {
        let mut pairs = url.query_pairs();
        let found = pairs.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.into_owned())
    };
    let is_signed = |names: &[&str]| names.iter().any(|name| value(name).is_some());
    for vendor in ["X-Amz", "X-Goog"] {
        if let (Some(at), Some(seconds)) = (
            value(&format!("{vendor}-Date")),
            value(&format!("{vendor}-Expires")),
        ) {
            let signed = strtime::parse("%Y%m%dT%H%M%SZ", &at).ok()?.to_datetime().ok()?;
            let signed = signed.to_zoned(TimeZone::UTC).ok()?.timestamp();
            return Some(signed + SignedDuration::from_secs(seconds.parse().ok()?));
        }
    }
    if is_signed(&["sig"])
        && let Some(end) = value("se")
    {
        return end.parse().ok();
    }
    if is_signed(&["signature"]) {
        return Timestamp::from_second(value("expires")?.parse().ok()?).ok();
    }
    None
}

/// When a URL that ends is renewed: when a third of its time is left. `None` if it does not end.
pub(super) fn renewed_at(url: &str, now: Timestamp) -> Option<Timestamp> {
    let left = url_end(url)?.duration_since(now);
    Some(now + (left * 2 / 3).max(SignedDuration::ZERO))
}

/// The URL to keep of one that is known and a fresh one of the same file: as long as the known one holds for
/// most of the fresh one's time, rows that have it need no other.
pub(super) fn to_keep(known: String, fresh: String, now: Timestamp) -> String {
    let without_query = |url: &str| url.split('?').next().map(str::to_owned);
    match (url_end(&known), url_end(&fresh)) {
        (Some(known_end), Some(fresh_end))
            if without_query(&known) == without_query(&fresh)
                && known_end.duration_since(now) * 2 > fresh_end.duration_since(now) =>
        {
            known
        }
        _ => fresh,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_signed_urls_are_known() {
        for (url, end) in [
            ("https://cloud.example/media/college/slips/a.jpg", None),
            ("https://cloud.example/a.jpg?expires=soon", None),
            ("https://cloud.example/a.jpg?expires=1764500000", None),
            (
                "https://cloud.example/a.jpg?expires=1764500000&signature=ab",
                Some("2025-11-30T10:53:20Z"),
            ),
            (
                "https://cdn.example/a.jpg?Expires=1764500000&Signature=ab&Key-Pair-Id=K",
                Some("2025-11-30T10:53:20Z"),
            ),
            (
                "https://b.s3.amazonaws.com/a.jpg?X-Amz-Date=20261130T220000Z&X-Amz-Expires=604800&X-Amz-Signature=ab",
                Some("2026-12-07T22:00:00Z"),
            ),
            (
                "https://storage.googleapis.com/b/a.jpg?X-Goog-Date=20261130T220000Z&X-Goog-Expires=3600",
                Some("2026-11-30T23:00:00Z"),
            ),
            (
                "https://a.blob.core.windows.net/b/a.jpg?sp=r&se=2026-12-01T22%3A00%3A00Z&sig=ab",
                Some("2026-12-01T22:00:00Z"),
            ),
            ("s3://bucket/a.jpg", None),
            ("not a URL", None),
        ] {
            let found = url_end(url).map(|end| end.to_string());
            assert_eq!(found.as_deref(), end, "{url}");
        }
    }

    #[test]
    fn a_url_is_renewed_when_a_third_of_its_time_is_left() {
        let now = Timestamp::from_second(1_764_500_000).unwrap();
        let url = |seconds: i64| {
            format!(
                "https://c.example/a?expires={}&signature=ab",
                1_764_500_000 + seconds
            )
        };
        let after = |seconds| renewed_at(&url(seconds), now).map(|at| at.duration_since(now).as_secs());
        assert_eq!(after(300), Some(200));
        assert_eq!(after(-5), Some(0));
        assert_eq!(renewed_at("https://c.example/a", now), None);
    }

    #[test]
    fn a_url_is_kept_as_long_as_it_holds_for_most_of_the_time() {
        let now = Timestamp::from_second(1_764_500_000).unwrap();
        let url = |name: &str, seconds: i64| {
            format!(
                "https://c.example/{name}?expires={}&signature=ab",
                1_764_500_000 + seconds
            )
        };
        let keep = |known: &String| to_keep(known.clone(), url("a", 300), now);
        assert_eq!(keep(&url("a", 200)), url("a", 200));
        assert_eq!(keep(&url("a", 100)), url("a", 300));
        assert_eq!(keep(&url("b", 200)), url("a", 300));
        assert_eq!(keep(&"https://c.example/a".to_owned()), url("a", 300));
        assert_eq!(
            to_keep(url("a", 200), "https://c.example/a".to_owned(), now),
            "https://c.example/a"
        );
    }
}
