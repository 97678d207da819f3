//! Reads a request's body into memory, within limits: on one body, on what it unpacks to, and on all bodies
//! together.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::receiver::http::api_error::{ApiError, ApiResult};
use crate::receiver::http::site_shares::SiteShare;

/// How many bodies of the greatest size may be in memory at once.
const BODIES: usize = 8;

/// The budget is counted in units of this many bytes.
const UNIT: usize = 1024;

/// The largest window that a zstd frame may ask for, as a power of two: level 19's.
const ZSTD_WINDOW: u32 = 23;

/// A larger body is unpacked on a thread that serves no requests.
const UNPACK_ASIDE: usize = 128 * 1024;

/// Memory that is allocated before a body has arrived, at most.
const AHEAD: usize = 1024 * 1024;

/// A body has this long, and a second more for each [`MIN_RATE`] bytes that have arrived.
const START: Duration = Duration::from_secs(60);

/// The slowest body, in bytes a second: far below what a client allows for.
const MIN_RATE: u64 = 1024;

/// Checks that a body does not arrive too slowly.
pub(crate) struct MinRate {
    began: Instant,
    bytes: u64,
}

impl MinRate {
    pub(crate) fn begin() -> Self {
        Self {
            began: Instant::now(),
            bytes: 0,
        }
    }

    /// Counts what has arrived.
    ///
    /// # Errors
    /// 408 if it is too little for the time.
    pub(crate) fn arrived(&mut self, bytes: usize) -> ApiResult<()> {
        self.bytes += bytes as u64;
        if self.began.elapsed() > START + Duration::from_secs(self.bytes / MIN_RATE) {
            return Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body arrives too slowly",
            ));
        }
        Ok(())
    }
}

/// The limits on bodies: on each one, and on all that are in memory.
#[derive(Clone)]
pub(crate) struct MemoryBudget {
    /// Bytes of one body, at most.
    body_limit: usize,
    all: Arc<Semaphore>,
    /// The share of the site that is served.
    of_site: Option<Arc<Semaphore>>,
}

/// A body in memory; its part of the budget is given back when it is dropped.
pub(crate) struct BufferedBody {
    pub(crate) bytes: Bytes,
    _permits: Vec<OwnedSemaphorePermit>,
}

/// The budget of all bodies, in units, if one body may have `body_limit` bytes.
fn units(body_limit: usize) -> usize {
    (body_limit / UNIT + 1) * BODIES
}

impl MemoryBudget {
    /// At most `body_limit` bytes a body, after unpacking.
    pub(crate) fn new(body_limit: usize) -> Self {
        Self {
            body_limit,
            all: Arc::new(Semaphore::new(units(body_limit))),
            of_site: None,
        }
    }

    /// The budget of all bodies, in units of 1 KiB.
    pub(crate) fn units(&self) -> usize {
        units(self.body_limit)
    }

    /// The budget of one site's bodies, which is a share of the whole.
    pub(crate) fn of(&self, share: &SiteShare) -> Self {
        Self {
            of_site: Some(Arc::clone(&share.memory)),
            ..self.clone()
        }
    }

    /// Reserves memory for this many bytes, from the site's share first.
    fn reserve(&self, bytes: usize, permits: &mut Vec<OwnedSemaphorePermit>) -> ApiResult<()> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        for budget in self.of_site.iter().chain([&self.all]) {
            let permit = Arc::clone(budget).try_acquire_many_owned(units);
            permits.push(permit.map_err(|_| ApiError::later("too many requests at once"))?);
        }
        Ok(())
    }

    fn too_large(&self) -> ApiError {
        ApiError::too_large(format!("the body is larger than {} bytes", self.body_limit))
    }

    /// Reads a body, and unpacks it if the headers say that it is packed with zstd.
    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body) -> ApiResult<BufferedBody> {
        self.read_seen(headers, body, |_| {}).await
    }

    /// The same. Each time that more of the body has arrived, `see` gets all of it so far; a packed body is
    /// not shown.
    pub(crate) async fn read_seen(
        &self,
        headers: &HeaderMap,
        body: Body,
        see: impl FnMut(&[u8]),
    ) -> ApiResult<BufferedBody> {
        let packed = match headers
            .get(header::CONTENT_ENCODING)
            .map(|value| value.as_bytes())
        {
            None | Some(b"" | b"identity") => false,
            Some(value) if value.eq_ignore_ascii_case(b"zstd") => true,
            Some(_) => {
                return Err(ApiError::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "the body's encoding is not zstd",
                ));
            }
        };
        // A layer around the body hides its length.
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        if !packed {
            return self.collect(body, announced, see).await;
        }
        let held = self.collect(body, announced, |_| {}).await?;
        if held.bytes.len() < UNPACK_ASIDE {
            return self.unpack(&held.bytes);
        }
        let budget = self.clone();
        tokio::task::spawn_blocking(move || budget.unpack(&held.bytes))
            .await
            .map_err(|error| ApiError::fault("unpack a body", error))?
    }

    async fn collect(
        &self,
        body: Body,
        announced: Option<usize>,
        mut see: impl FnMut(&[u8]),
    ) -> ApiResult<BufferedBody> {
        let mut rate = MinRate::begin();
        let mut stream = body.into_data_stream();
        let mut permits = Vec::new();
        let mut all = Vec::new();
        let mut length = 0;
        let mut reserved = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk
                .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body ended before its end"))?;
            rate.arrived(chunk.len())?;
            length += chunk.len();
            if length > self.body_limit {
                return Err(self.too_large());
            }
            if length > reserved {
                // In steps, so that many small chunks do not make many small permits.
                let step = (length - reserved).max(64 * 1024);
                self.reserve(step, &mut permits)?;
                reserved += step;
            }
            if all.is_empty() {
                if Some(chunk.len()) == announced {
                    return Ok(BufferedBody {
                        bytes: chunk,
                        _permits: permits,
                    });
                }
                // The announced length may be wrong.
                all.reserve(announced.unwrap_or_default().min(AHEAD));
            }
            // Copied at once, so that the connection can fill the same buffer again.
            all.extend_from_slice(&chunk);
            see(&all);
        }
        Ok(BufferedBody {
            bytes: Bytes::from(all),
            _permits: permits,
        })
    }

    fn unpack(&self, packed: &[u8]) -> ApiResult<BufferedBody> {
        let invalid = |_| ApiError::malformed("the body is not valid zstd");
        let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(invalid)?;
        decoder.window_log_max(ZSTD_WINDOW).map_err(invalid)?;
        let mut permits = Vec::new();
        let mut plain = Vec::new();
        loop {
            let step = (packed.len() * 4).clamp(64 * 1024, 4 * 1024 * 1024);
            self.reserve(step, &mut permits)?;
            let read = decoder
                .by_ref()
                .take(step as u64)
                .read_to_end(&mut plain)
                .map_err(invalid)?;
            if plain.len() > self.body_limit {
                return Err(self.too_large());
            }
            if read < step {
                break;
            }
        }
        Ok(BufferedBody {
            bytes: Bytes::from(plain),
            _permits: permits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_arrives_too_slowly_is_given_up() {
        let body = |pause: u64| {
            Body::from_stream(futures::stream::unfold(0, move |chunk_index| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                (chunk_index < 200).then(|| {
                    let chunk = Bytes::from(vec![b' '; 2048]);
                    (Ok::<_, std::io::Error>(chunk), chunk_index + 1)
                })
            }))
        };
        let budget = MemoryBudget::new(1 << 20);
        let read = budget.read(&HeaderMap::new(), body(1)).await;
        assert_eq!(read.unwrap().bytes.len(), 200 * 2048);
        assert!(budget.read(&HeaderMap::new(), body(5)).await.is_err());
    }

    #[tokio::test]
    async fn a_packed_body_is_limited_by_what_it_unpacks_to() {
        let budget = MemoryBudget::new(1 << 20);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, "zstd".parse().unwrap());
        let pack = |length: usize| Body::from(zstd::bulk::compress(&vec![b' '; length], 3).unwrap());
        assert_eq!(
            budget.read(&headers, pack(1 << 20)).await.unwrap().bytes.len(),
            1 << 20
        );
        assert!(budget.read(&headers, pack((1 << 20) + 1)).await.is_err());
        assert!(budget.read(&headers, pack(1 << 30)).await.is_err());
        assert!(budget.read(&headers, Body::from("{}")).await.is_err());
        assert_eq!(budget.all.available_permits(), (1024 + 1) * BODIES);
    }
}
