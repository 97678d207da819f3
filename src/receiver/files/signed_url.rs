//! URLs of files that hold for a time: each carries its end and a signature of both its path and its end.
//!
//! The key is in the receiver's database, so the URLs of one receiver hold at every other one of this database.
//! Whoever has the site's key gets a newer URL at any time, by `HEAD /upload/{directory}?hash=…`.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

/// A new URL is made so many times in the time that one holds: in between a file's URL is the same.
const STEPS: u64 = 3;

/// The query of a URL that holds for a time.
#[derive(Debug, Deserialize)]
pub(crate) struct SignedQuery {
    /// Seconds since 1970.
    expires: i64,
    /// In hexadecimal.
    signature: String,
}

/// Signs the URLs of files, and checks them.
pub(crate) struct UrlSigner {
    key: [u8; 32],
    /// How long a URL holds at least.
    valid: Duration,
}

impl UrlSigner {
    pub(crate) fn new(key: [u8; 32], valid: Duration) -> Self {
        Self { key, valid }
    }

    /// What stands after the `?` in the URL of this path: it holds for the set time at least, and for a third
    /// more at most.
    pub(crate) fn query(&self, path: &str, now: Timestamp) -> String {
        let step = (self.valid.as_secs() / STEPS).max(1).cast_signed();
        let least = now.as_second() + self.valid.as_secs().cast_signed();
        let expires = (least.div_euclid(step) + 1) * step;
        format!(
            "expires={expires}&signature={}",
            self.signature(path, expires).to_hex()
        )
    }

    /// Whether the query holds for this path now.
    pub(crate) fn holds(&self, path: &str, query: &SignedQuery, now: Timestamp) -> bool {
        // Hashes are compared in constant time.
        let is_ours = blake3::Hash::from_hex(&query.signature)
            .is_ok_and(|signature| signature == self.signature(path, query.expires));
        is_ours && now.as_second() < query.expires
    }

    fn signature(&self, path: &str, expires: i64) -> blake3::Hash {
        blake3::keyed_hash(&self.key, format!("{path}\n{expires}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> SignedQuery {
        let pairs: std::collections::HashMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).collect();
        SignedQuery {
            expires: pairs["expires"].parse().unwrap(),
            signature: pairs["signature"].clone().into_owned(),
        }
    }

    #[test]
    fn a_url_holds_for_its_path_and_until_its_end_only() {
        let signer = UrlSigner::new([7; 32], Duration::from_secs(300));
        let at = |second| Timestamp::from_second(second).unwrap();
        let now = 1_764_500_000;
        let text = signer.query("college/slips/a.jpg", at(now));
        let mut query = read(&text);
        assert!((now + 300..=now + 400).contains(&query.expires), "{text}");
        // It is the same for a while.
        assert_eq!(signer.query("college/slips/a.jpg", at(query.expires - 400)), text);
        assert!(signer.holds("college/slips/a.jpg", &query, at(now + 299)));
        assert!(!signer.holds("college/slips/a.jpg", &query, at(query.expires)));
        assert!(!signer.holds("college/slips/b.jpg", &query, at(now)));
        let another = UrlSigner::new([8; 32], Duration::from_secs(300));
        assert!(!another.holds("college/slips/a.jpg", &query, at(now)));
        query.expires += 1_000;
        assert!(!signer.holds("college/slips/a.jpg", &query, at(now)));
        query.signature = "none".to_owned();
        assert!(!signer.holds("college/slips/a.jpg", &query, at(now)));
    }
}
