//! The connections on which rows are written, and the queue of each site's requests.
//!
//! Always holds:
//! - One request of a site at a time holds a connection, in the order in which they arrived; so a site that
//!   sends many at once keeps no other waiting. The site's lock keeps receivers apart that share a database.
//! - A connection is given back only when everything that was asked on it has ended; a request that fails
//!   or is dropped before that closes its connection.
//! - Statements are planned by index on all connections, once for all: they are prepared while a table is
//!   still empty, when a scan of it looks cheap, and they must not keep such a plan while it fills.

use std::collections::HashMap;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Notify, OwnedMutexGuard, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::error::Result;
use crate::receiver::db::apply_session::ApplySession;
use crate::receiver::db::connector::Connector;
use crate::receiver::db::db_error::DbError;

/// Connections at once.
const CONNECTIONS: usize = 8;

/// How long a request waits in its site's queue, and then for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// How soon a batch whose turn has not come asks again whether it has.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A connection that was idle for this long is asked whether it still answers.
const SILENCE: Duration = Duration::from_secs(2);

/// The idle connections, and the order of requests.
pub(crate) struct ApplyPool {
    connector: Connector,
    idle: Mutex<Vec<IdleConnection>>,
    permits: Semaphore,
    queues: Mutex<HashMap<Arc<str>, Arc<SiteQueue>>>,
}

/// The requests of one site.
#[derive(Default)]
struct SiteQueue {
    head: Arc<tokio::sync::Mutex<()>>,
    /// Notified when a batch was taken.
    batch_taken: Notify,
}

/// The head of a site's queue, until it is dropped.
pub(crate) struct QueueHead {
    queue: Arc<SiteQueue>,
    head: OwnedMutexGuard<()>,
}

impl QueueHead {
    /// Tells the batches that wait for their turn that one was taken.
    pub(crate) fn batch_taken(self) {
        self.queue.batch_taken.notify_waiters();
    }

    /// Lets the others go first, until a batch was taken. A batch that another receiver took is not noticed.
    pub(crate) async fn wait_for_a_batch(self) {
        let mut batch_taken = std::pin::pin!(self.queue.batch_taken.notified());
        batch_taken.as_mut().enable();
        drop(self.head);
        let _ = timeout(ASK_AGAIN, batch_taken).await;
    }
}

struct IdleConnection {
    session: ApplySession,
    since: Instant,
}

/// A connection, until it is given back. Dropping it closes the connection.
pub(crate) struct ApplyConnection<'a> {
    session: ApplySession,
    _permit: SemaphorePermit<'a>,
}

impl Deref for ApplyConnection<'_> {
    type Target = ApplySession;

    fn deref(&self) -> &ApplySession {
        &self.session
    }
}

impl DerefMut for ApplyConnection<'_> {
    fn deref_mut(&mut self) -> &mut ApplySession {
        &mut self.session
    }
}

impl ApplyPool {
    /// Connections as `options` say, each made when it is first needed.
    ///
    /// # Errors
    /// A certificate or key that the options name and that cannot be used.
    pub(crate) fn new(options: &PgConnectOptions) -> Result<Self> {
        let options = options.clone().options([
            ("extra_float_digits", "2"),
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("plan_cache_mode", "force_generic_plan"),
        ]);
        Ok(Self {
            connector: Connector::new(&options)?,
            idle: Mutex::default(),
            permits: Semaphore::new(CONNECTIONS),
            queues: Mutex::default(),
        })
    }

    /// Waits until this request is at the head of its site's queue.
    pub(crate) async fn site_queue(&self, site: &Arc<str>) -> std::result::Result<QueueHead, DbError> {
        let queue = {
            let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(queues.entry(Arc::clone(site)).or_default())
        };
        let head = patiently(Arc::clone(&queue.head).lock_owned()).await?;
        Ok(QueueHead { queue, head })
    }

    /// Takes an idle connection, else opens one.
    pub(crate) async fn take(&self) -> std::result::Result<ApplyConnection<'_>, DbError> {
        let permit = patiently(self.permits.acquire())
            .await?
            .map_err(|_| DbError::transient("the server is stopping"))?;
        loop {
            let idle = self.idle().pop();
            let session = match idle {
                Some(idle) => {
                    let silent = idle.since.elapsed() > SILENCE;
                    if idle.session.is_closed() || (silent && !idle.session.is_alive().await) {
                        continue;
                    }
                    idle.session
                }
                None => ApplySession::open(&self.connector).await?,
            };
            return Ok(ApplyConnection {
                session,
                _permit: permit,
            });
        }
    }

    /// Takes a connection back on which nothing is in progress.
    pub(crate) fn give_back(&self, connection: ApplyConnection<'_>) {
        self.idle().push(IdleConnection {
            session: connection.session,
            since: Instant::now(),
        });
    }

    /// Closes the idle connections, and hands out no more.
    pub(crate) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            connection.session.close().await;
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<IdleConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn patiently<T>(waiting: impl Future<Output = T>) -> std::result::Result<T, DbError> {
    timeout(PATIENCE, waiting)
        .await
        .map_err(|_| DbError::transient("too many requests wait"))
}
