//! Slows down who guesses the operator API's token: an address that has given several wrong ones within a
//! minute is refused for the rest of the minute, whatever it gives.
//!
//! What always holds: a wrong token counts once in a minute, however often it comes. So a program that still
//! has the old token, on the same machine or behind the same proxy, locks nobody out. The table of addresses
//! is bounded; when it is full, all further addresses count as one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long wrong tokens are remembered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Different wrong tokens that an address may give in that time.
const ALLOWED: usize = 10;

/// Addresses that are remembered at once.
const ADDRESSES: usize = 1024;

/// The address that stands for all others when the table is full.
const OTHERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// What is known of a token that somebody gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenCheck {
    /// It is the token.
    Valid,
    /// It is not.
    Wrong,
    /// It was not compared: the address must wait for so long.
    TooMany(Duration),
}

/// The wrong tokens of the last minute, by the address that they came from.
#[derive(Default)]
pub(super) struct TokenThrottle(Mutex<HashMap<IpAddr, WrongTokens>>);

struct WrongTokens {
    since: Instant,
    /// Parts of the tokens' hashes.
    hashes: Vec<u64>,
}

impl TokenThrottle {
    /// Checks a token by `is_valid`, unless the address has guessed too often.
    pub(super) fn check(&self, from: IpAddr, given: &str, is_valid: impl FnOnce(&str) -> bool) -> TokenCheck {
        let now = Instant::now();
        let is_fresh = |wrong: &WrongTokens| now.duration_since(wrong.since) < REMEMBERED;
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut from = network(from);
        if !addresses.contains_key(&from) && addresses.len() >= ADDRESSES {
            addresses.retain(|_, wrong| is_fresh(wrong));
            if addresses.len() >= ADDRESSES {
                from = OTHERS;
            }
        }
        let hash = short_hash(given);
        if let Some(wrong) = addresses.get(&from).filter(|wrong| is_fresh(wrong)) {
            if wrong.hashes.contains(&hash) {
                return TokenCheck::Wrong;
            }
            if wrong.hashes.len() >= ALLOWED {
                return TokenCheck::TooMany(REMEMBERED - now.duration_since(wrong.since));
            }
        }
        if is_valid(given) {
            return TokenCheck::Valid;
        }
        let wrong = addresses.entry(from).or_insert_with(|| WrongTokens {
            since: now,
            hashes: Vec::new(),
        });
        if !is_fresh(wrong) {
            *wrong = WrongTokens {
                since: now,
                hashes: Vec::new(),
            };
        }
        if wrong.hashes.is_empty() {
            tracing::warn!(%from, "somebody gave the operator API a wrong token");
        }
        wrong.hashes.push(hash);
        if wrong.hashes.len() == ALLOWED {
            tracing::warn!(
                %from,
                "too many wrong tokens for the operator API: the address is refused for a minute"
            );
        }
        TokenCheck::Wrong
    }
}

/// The address, or the network of an IPv6 address: who has one has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

fn short_hash(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes()
        .iter()
        .take(8)
        .fold(0, |short, byte| short << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(throttle: &TokenThrottle, from: &str, given: &str) -> TokenCheck {
        throttle.check(from.parse().unwrap(), given, |given| given == "right")
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_is_refused_for_the_rest_of_the_minute() {
        let throttle = TokenThrottle::default();
        for guess in 0..ALLOWED {
            assert_eq!(
                check(&throttle, "192.0.2.1", &guess.to_string()),
                TokenCheck::Wrong
            );
        }
        assert!(matches!(
            check(&throttle, "192.0.2.1", "right"),
            TokenCheck::TooMany(_)
        ));
        assert_eq!(check(&throttle, "192.0.2.2", "right"), TokenCheck::Valid);
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(check(&throttle, "192.0.2.1", "right"), TokenCheck::Valid);
        assert_eq!(check(&throttle, "192.0.2.1", "other"), TokenCheck::Wrong);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_token_that_comes_again_and_again_locks_nobody_out() {
        let throttle = TokenThrottle::default();
        for _ in 0..100 {
            assert_eq!(check(&throttle, "127.0.0.1", "old"), TokenCheck::Wrong);
        }
        assert_eq!(check(&throttle, "127.0.0.1", "right"), TokenCheck::Valid);
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_a_network_counts_as_one() {
        let throttle = TokenThrottle::default();
        for guess in 0..ALLOWED {
            let from = format!("2001:db8::{guess:x}");
            assert_eq!(check(&throttle, &from, &guess.to_string()), TokenCheck::Wrong);
        }
        assert!(matches!(
            check(&throttle, "2001:db8::ffff", "right"),
            TokenCheck::TooMany(_)
        ));
        for number in 0..5000_u32 {
            let from = IpAddr::from(number.to_be_bytes());
            throttle.check(from, "wrong", |_| false);
        }
        assert!(throttle.0.lock().unwrap().len() <= ADDRESSES + 1);
    }
}
