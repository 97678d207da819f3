//! What one site may hold of the receiver at once: a quarter of each limited thing, so that no site keeps the
//! others waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::receiver::http::api_error::{ApiError, ApiResult};

/// A site's share is one part of this many.
const PARTS: usize = 4;

/// How long a request waits for its site's share.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much there is for all sites together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerCapacity {
    /// Memory for bodies, in the units of the memory budget.
    pub(crate) memory: usize,
    /// Connections in the pool.
    pub(crate) connections: usize,
    /// Lists at once.
    pub(crate) lists: usize,
    /// Clients' connections that are not closed for a newcomer.
    pub(crate) client_connections: usize,
}

/// The shares of all sites that have asked for something.
pub(crate) struct SiteShares {
    whole: ServerCapacity,
    sites: Mutex<HashMap<Arc<str>, Arc<SiteShare>>>,
}

/// What one site may still take.
#[derive(Debug)]
pub(crate) struct SiteShare {
    pub(crate) memory: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    client_connections: Arc<Semaphore>,
}

impl SiteShares {
    pub(crate) fn new(whole: ServerCapacity) -> Self {
        Self {
            whole,
            sites: Mutex::default(),
        }
    }

    /// The site's share.
    pub(crate) fn of(&self, site: &Arc<str>) -> Arc<SiteShare> {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let share = sites.entry(Arc::clone(site)).or_insert_with(|| {
            let part = |all: usize| Arc::new(Semaphore::new((all / PARTS).max(1)));
            Arc::new(SiteShare {
                memory: part(self.whole.memory),
                connections: part(self.whole.connections),
                lists: part(self.whole.lists),
                client_connections: part(self.whole.client_connections),
            })
        });
        Arc::clone(share)
    }
}

impl SiteShare {
    /// Waits until the site may take a connection of the pool, for as long as the permit lives.
    pub(crate) async fn connection(&self) -> ApiResult<OwnedSemaphorePermit> {
        patiently(&self.connections, "too many requests of this site at once").await
    }

    /// Waits until the site may have another list.
    pub(crate) async fn list(&self) -> ApiResult<OwnedSemaphorePermit> {
        patiently(&self.lists, "too many lists of this site at once").await
    }

    /// Keeps a client's connection from being closed for a newcomer; `None` if the site has its part of them.
    pub(crate) fn client_connection(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.client_connections).try_acquire_owned().ok()
    }
}

async fn patiently(share: &Arc<Semaphore>, refusal: &str) -> ApiResult<OwnedSemaphorePermit> {
    tokio::time::timeout(PATIENCE, Arc::clone(share).acquire_owned())
        .await
        .map_err(|_| ApiError::later(refusal))?
        .map_err(|_| ApiError::later("the server is stopping"))
}
