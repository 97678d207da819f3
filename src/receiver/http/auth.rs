//! Authentication: a request belongs to the site of its API key, never to one that it claims.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::{StatusCode, header, request::Parts};
use tokio::time::Instant;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::error::{Error, Result};
use crate::receiver::Shared;
use crate::receiver::files::media::is_plain_name;
use crate::receiver::http::api_error::ApiError;
use crate::receiver::http::site_shares::SiteShare;
use crate::serve::RemoteClient;

/// Wrong keys are forgotten after this time, and logged once in it for each address.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Addresses that are remembered at once.
const ADDRESSES: usize = 1024;

/// The valid keys. Clones share them.
#[derive(Clone)]
pub struct KeyRing(Arc<RwLock<KeyHashes>>);

impl KeyRing {
    pub(crate) fn new(keys: &BTreeMap<String, Vec<String>>) -> Result<Self> {
        Ok(Self(Arc::new(RwLock::new(KeyHashes::new(keys)?))))
    }

    /// From now on these keys are valid, and no others.
    ///
    /// # Errors
    /// A configuration error; the old keys stay valid then.
    pub fn replace(&self, keys: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let keys = KeyHashes::new(keys)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    fn site(&self, key: &str) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).site(key)
    }
}

/// The keys of all sites, as hashes: the keys themselves are not kept.
struct KeyHashes {
    sites: Vec<Arc<str>>,
    hashes: Vec<(u32, [u8; 32])>,
}

impl KeyHashes {
    /// The keys of the settings.
    ///
    /// # Errors A configuration error: a site's name that is not one plain segment, an empty key, a key that
    /// two sites share.
    fn new(keys: &BTreeMap<String, Vec<String>>) -> Result<Self> {
        let mut sites = Vec::new();
        let mut hashes: Vec<(u32, [u8; 32])> = Vec::new();
        for (site, keys) in keys {
            let wrong = |cause: &str| Error::config(format!("use the keys of site {site:?}"), cause);
            if !is_plain_name(site) {
                return Err(wrong("its name is not one plain segment")
                    .remedy("use letters, digits, _ and -, 60 at most"));
            }
            let number = sites.len() as u32;
            sites.push(Arc::from(site.as_str()));
            for key in keys {
                if key.trim().is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(wrong(
                        "a key is empty or has blanks or other characters that a header cannot carry",
                    )
                    .remedy("use a long random text of letters and digits"));
                }
                let hash = *blake3::hash(key.as_bytes()).as_bytes();
                if hashes
                    .iter()
                    .any(|(other, known)| *other != number && *known == hash)
                {
                    return Err(
                        wrong("another site has the same key").remedy("give each site keys of its own")
                    );
                }
                hashes.push((number, hash));
            }
        }
        Ok(Self { sites, hashes })
    }

    /// The site of a key. It takes the same time whichever key matches, and if no key does.
    fn site(&self, key: &str) -> Option<Arc<str>> {
        let hash = blake3::hash(key.as_bytes());
        let mut found = Choice::from(0);
        let mut number = 0_u32;
        for (site, known) in &self.hashes {
            let same = known[..].ct_eq(&hash.as_bytes()[..]);
            number.conditional_assign(site, same);
            found |= same;
        }
        bool::from(found)
            .then(|| self.sites.get(number as usize).cloned())
            .flatten()
    }
}

/// The wrong keys of the last minute, by the address that they came from: each is answered later than the one
/// before, and the first one is logged. A request with a valid key is never delayed.
#[derive(Default)]
pub(crate) struct AuthThrottle(Mutex<HashMap<IpAddr, (Instant, u32)>>);

impl AuthThrottle {
    /// Counts a wrong key. Returns how long its answer must wait.
    fn count(&self, from: IpAddr) -> Duration {
        let now = Instant::now();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= ADDRESSES {
            counts.retain(|_, (since, _)| now.duration_since(*since) < REMEMBERED);
        }
        if counts.len() >= ADDRESSES && !counts.contains_key(&from) {
            return Duration::from_secs(1);
        }
        let (since, count) = counts.entry(from).or_insert((now, 0));
        if now.duration_since(*since) >= REMEMBERED {
            tracing::warn!(%from, count = *count, "requests came with wrong API keys");
            (*since, *count) = (now, 0);
        } else if *count == 0 {
            tracing::warn!(%from, "a request came with a wrong API key; more of them are counted for a minute");
        }
        *count = count.saturating_add(1);
        Duration::from_millis(25) * (1 << (*count).min(6))
    }
}

/// The site that a request's key belongs to, and what it may hold.
#[derive(Debug, Clone)]
pub(crate) struct AuthenticatedSite(pub(crate) Arc<str>, pub(crate) Arc<SiteShare>);

impl FromRequestParts<Arc<Shared>> for AuthenticatedSite {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        shared: &Arc<Shared>,
    ) -> std::result::Result<Self, ApiError> {
        let given = parts.headers.get(header::AUTHORIZATION);
        let bearer = given
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let caller = parts.extensions.get::<RemoteClient>();
        if let Some(site) = bearer.and_then(|key| shared.keys.site(key)) {
            let share = shared.shares.of(&site);
            if let Some(caller) = caller.filter(|caller| !caller.is_trusted())
                && let Some(permit) = share.client_connection()
            {
                caller.trust(Some(permit));
            }
            return Ok(Self(site, share));
        }
        if let (Some(caller), Some(_)) = (caller, given) {
            tokio::time::sleep(shared.auth_throttle.count(caller.address.ip())).await;
        }
        Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "the API key is missing or not valid",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wrong_keys_from_one_address_wait_longer_and_longer() {
        let throttle = AuthThrottle::default();
        let (first, second) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let waits: Vec<u128> = (0..8).map(|_| throttle.count(first).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 1600, 1600]);
        assert_eq!(throttle.count(second).as_millis(), 50);
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(throttle.count(first).as_millis(), 50);
    }
}
