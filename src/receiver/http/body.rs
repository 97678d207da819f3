//! Reads a request's body into memory, within bounds: of one body, of what it unpacks to, and of all bodies together.

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
const UNIT: usize = 1024;

/// The largest window that a zstd frame may ask for, as a power of two: level 19's.
const ZSTD_WINDOW: u32 = 23;

/// Above this, unpacking leaves the threads that serve requests.
const UNPACK_ASIDE: usize = 128 * 1024;

/// Room that is made before a body has come, at most.
const AHEAD: usize = 1024 * 1024;

/// A body has this long, and a second more for each [`PACE`] bytes that have come.
const START: Duration = Duration::from_secs(60);

/// The slowest body, in bytes a second: far below what a client reckons with.
const PACE: u64 = 1024;

/// How fast a body comes.
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

    /// Notes what has come.
    ///
    /// # Errors
    /// 408 where it is too little for the time.
    pub(crate) fn came(&mut self, bytes: usize) -> ApiResult<()> {
        self.bytes += bytes as u64;
        if self.began.elapsed() > START + Duration::from_secs(self.bytes / PACE) {
            return Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body comes too slowly",
            ));
        }
        Ok(())
    }
}

/// The bound on bodies: of each one, and of all in memory.
#[derive(Clone)]
pub(crate) struct MemoryBudget {
    one: usize,
    all: Arc<Semaphore>,
    /// Of the site that is served.
    own: Option<Arc<Semaphore>>,
}

/// A body in memory; its share of the bound on all is given back when it is dropped.
pub(crate) struct BufferedBody {
    pub(crate) bytes: Bytes,
    _share: Vec<OwnedSemaphorePermit>,
}

/// The bound on all bodies, in units, where one may have so many bytes.
fn units(one: usize) -> usize {
    (one / UNIT + 1) * BODIES
}

impl MemoryBudget {
    /// At most `one` bytes a body, after unpacking.
    pub(crate) fn new(one: usize) -> Self {
        Self {
            one,
            all: Arc::new(Semaphore::new(units(one))),
            own: None,
        }
    }

    /// The bound on all bodies, in units of 1 KiB.
    pub(crate) fn units(&self) -> usize {
        units(self.one)
    }

    /// The same for the bodies of one site, which have a share of all.
    pub(crate) fn of(&self, share: &SiteShare) -> Self {
        Self {
            own: Some(Arc::clone(&share.memory)),
            ..self.clone()
        }
    }

    /// Takes room for so many bytes, out of the site's share first.
    fn take(&self, bytes: usize, taken: &mut Vec<OwnedSemaphorePermit>) -> ApiResult<()> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        for room in self.own.iter().chain([&self.all]) {
            let room = Arc::clone(room).try_acquire_many_owned(units);
            taken.push(room.map_err(|_| ApiError::later("too many requests at once"))?);
        }
        Ok(())
    }

    fn too_large(&self) -> ApiError {
        ApiError::too_large(format!("the body is larger than {} bytes", self.one))
    }

    /// Reads a body, and unpacks it where the headers say that it is packed with zstd.
    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body) -> ApiResult<BufferedBody> {
        self.read_seen(headers, body, |_| {}).await
    }

    /// The same. `see` is shown what has come, from the body's beginning, each time that more has; of a packed body, nothing.
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
        // The body does not tell by itself: a layer around it hides its length.
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
        let bounds = self.clone();
        tokio::task::spawn_blocking(move || bounds.unpack(&held.bytes))
            .await
            .map_err(|error| ApiError::fault("unpack a body", &error))?
    }

    async fn collect(
        &self,
        body: Body,
        announced: Option<usize>,
        mut see: impl FnMut(&[u8]),
    ) -> ApiResult<BufferedBody> {
        let mut pace = MinRate::begin();
        let mut stream = body.into_data_stream();
        let mut share = Vec::new();
        let mut all = Vec::new();
        let mut length = 0;
        let mut paid = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk
                .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body ended before its end"))?;
            pace.came(chunk.len())?;
            length += chunk.len();
            if length > self.one {
                return Err(self.too_large());
            }
            if length > paid {
                // In steps, so that many small chunks do not make many small permits.
                let step = (length - paid).max(64 * 1024);
                self.take(step, &mut share)?;
                paid += step;
            }
            if all.is_empty() {
                if Some(chunk.len()) == announced {
                    return Ok(BufferedBody {
                        bytes: chunk,
                        _share: share,
                    });
                }
                // What is announced need not come.
                all.reserve(announced.unwrap_or_default().min(AHEAD));
            }
            // Copied at once, so that the connection fills the same buffer again.
            all.extend_from_slice(&chunk);
            see(&all);
        }
        Ok(BufferedBody {
            bytes: Bytes::from(all),
            _share: share,
        })
    }

    fn unpack(&self, packed: &[u8]) -> ApiResult<BufferedBody> {
        let broken = |_| ApiError::malformed("the body is not valid zstd");
        let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(broken)?;
        decoder.window_log_max(ZSTD_WINDOW).map_err(broken)?;
        let mut share = Vec::new();
        let mut plain = Vec::new();
        loop {
            let step = (packed.len() * 4).clamp(64 * 1024, 4 * 1024 * 1024);
            self.take(step, &mut share)?;
            let read = decoder
                .by_ref()
                .take(step as u64)
                .read_to_end(&mut plain)
                .map_err(broken)?;
            if plain.len() > self.one {
                return Err(self.too_large());
            }
            if read < step {
                break;
            }
        }
        Ok(BufferedBody {
            bytes: Bytes::from(plain),
            _share: share,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_dribbles_is_given_up() {
        let body = |pause: u64| {
            Body::from_stream(futures::stream::unfold(0, move |nth| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                (nth < 200).then(|| (Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 2048])), nth + 1))
            }))
        };
        let bounds = MemoryBudget::new(1 << 20);
        let read = bounds.read(&HeaderMap::new(), body(1)).await;
        assert_eq!(read.unwrap().bytes.len(), 200 * 2048);
        assert!(bounds.read(&HeaderMap::new(), body(5)).await.is_err());
    }

    #[tokio::test]
    async fn a_packed_body_is_bounded_by_what_it_unpacks_to() {
        let bounds = MemoryBudget::new(1 << 20);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, "zstd".parse().unwrap());
        let pack = |length: usize| Body::from(zstd::bulk::compress(&vec![b' '; length], 3).unwrap());
        assert_eq!(
            bounds.read(&headers, pack(1 << 20)).await.unwrap().bytes.len(),
            1 << 20
        );
        assert!(bounds.read(&headers, pack((1 << 20) + 1)).await.is_err());
        assert!(bounds.read(&headers, pack(1 << 30)).await.is_err());
        assert!(bounds.read(&headers, Body::from("{}")).await.is_err());
        assert_eq!(bounds.all.available_permits(), (1024 + 1) * BODIES);
    }
}
