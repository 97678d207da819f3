//! What one site may hold of the receiver at once: a quarter of each thing of which there is only so much, so that no site keeps
//! the others waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{ApiError, ApiResult};

/// A site has one part of so many.
const PARTS: usize = 4;

/// How long a request waits for its site's share.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much there is for all sites together.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerCapacity {
    /// Memory for bodies, in units of the bound on bodies.
    pub(super) memory: usize,
    /// Connections in the pool.
    pub(super) connections: usize,
    /// Lists at once.
    pub(super) lists: usize,
    /// Clients' connections that give their place to no newcomer.
    pub(super) places: usize,
}

/// The shares of all sites that have asked for something.
pub(super) struct SiteShares {
    whole: ServerCapacity,
    sites: Mutex<HashMap<Arc<str>, Arc<SiteShare>>>,
}

/// What one site may still take.
#[derive(Debug)]
pub(super) struct SiteShare {
    pub(super) memory: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl SiteShares {
    pub(super) fn new(whole: ServerCapacity) -> Self {
        Self {
            whole,
            sites: Mutex::default(),
        }
    }

    /// The site's.
    pub(super) fn of(&self, site: &Arc<str>) -> Arc<SiteShare> {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let share = sites.entry(Arc::clone(site)).or_insert_with(|| {
            let part = |all: usize| Arc::new(Semaphore::new((all / PARTS).max(1)));
            Arc::new(SiteShare {
                memory: part(self.whole.memory),
                connections: part(self.whole.connections),
                lists: part(self.whole.lists),
                places: part(self.whole.places),
            })
        });
        Arc::clone(share)
    }
}

impl SiteShare {
    /// Waits until the site may take a connection of the pool, for as long as the permit lives.
    pub(super) async fn connection(&self) -> ApiResult<OwnedSemaphorePermit> {
        patient(&self.connections, "too many requests of this site at once").await
    }

    /// Waits until the site may have a list made.
    pub(super) async fn list(&self) -> ApiResult<OwnedSemaphorePermit> {
        patient(&self.lists, "too many lists of this site at once").await
    }

    /// A client's place that no newcomer gets; none where the site has its part of them.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }
}

async fn patient(share: &Arc<Semaphore>, otherwise: &str) -> ApiResult<OwnedSemaphorePermit> {
    tokio::time::timeout(PATIENCE, Arc::clone(share).acquire_owned())
        .await
        .map_err(|_| ApiError::later(otherwise))?
        .map_err(|_| ApiError::later("the server is stopping"))
}
