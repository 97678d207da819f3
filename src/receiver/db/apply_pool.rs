//! The connections on which changes are applied, and the queue of each site's requests.
//!
//! Invariants:
//! - Of one site, one request at a time holds a connection, in the order in which they came; so a site that sends many
//!   at once keeps no other waiting. Receivers that share a database are kept apart by the site's lock.
//! - A connection goes back only when what was asked on it has ended; one whose request broke off is closed.
//! - Statements are planned by index on all of them, once for all: they are prepared while a table is still empty, when a
//!   scan of it looks cheap, and they must not stay so while it fills.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::sync::{Notify, OwnedMutexGuard, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::receiver::db::pool::{DbError, STATEMENTS};

/// Connections at once.
const CONNECTIONS: usize = 8;

/// How long a request waits in its site's queue, and then for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// How soon a batch whose turn has not come looks again whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A connection that has done nothing for this long is asked whether it still stands.
const SILENT: Duration = Duration::from_secs(2);

/// The connections that are at rest, and the order of requests.
pub(crate) struct ApplyPool {
    options: PgConnectOptions,
    idle: Mutex<Vec<IdleConnection>>,
    places: Semaphore,
    queues: Mutex<HashMap<Arc<str>, Arc<SiteQueue>>>,
}

/// The requests of one site.
#[derive(Default)]
struct SiteQueue {
    head: Arc<tokio::sync::Mutex<()>>,
    /// A batch was taken.
    taken: Notify,
}

/// The head of a site's queue, until it is dropped.
pub(crate) struct QueueHead {
    queue: Arc<SiteQueue>,
    head: OwnedMutexGuard<()>,
}

impl QueueHead {
    /// Notes that a batch was taken: the next one has its turn.
    pub(crate) fn taken(self) {
        self.queue.taken.notify_waiters();
    }

    /// Lets the others go first, until a batch was taken. One that another receiver took is not told of.
    pub(crate) async fn wait(self) {
        let mut taken = std::pin::pin!(self.queue.taken.notified());
        taken.as_mut().enable();
        drop(self.head);
        let _ = timeout(LOOK_AGAIN, taken).await;
    }
}

struct IdleConnection {
    connection: PgConnection,
    prepared: PreparedStatements,
    since: Instant,
}

/// A connection, until it is given back.
pub(crate) struct ApplyConnection<'a> {
    pub(crate) connection: PgConnection,
    pub(crate) prepared: PreparedStatements,
    _place: SemaphorePermit<'a>,
}

/// The statements that were prepared by name: of an entity's table in a version, for upserts or for deletes.
#[derive(Default)]
pub(crate) struct PreparedStatements(HashMap<(String, bool), (i64, usize)>);

impl PreparedStatements {
    /// The statement's name. One that is not prepared yet in this version is, and takes an older one's place; none where
    /// there is no room for another.
    pub(crate) async fn name(
        &mut self,
        connection: &mut PgConnection,
        (entity, delete, version): (&str, bool, i64),
        sql: impl FnOnce() -> (String, String),
    ) -> Result<Option<String>, DbError> {
        let count = self.0.len();
        let known = self.0.get(&(entity.to_owned(), delete)).copied();
        let number = match known {
            Some((same, number)) if same == version => return Ok(Some(name(number))),
            Some((_, number)) => {
                let old = format!("deallocate {}", name(number));
                execute_text(connection, old).await?;
                number
            }
            None if count >= STATEMENTS => return Ok(None),
            None => count,
        };
        self.0.remove(&(entity.to_owned(), delete));
        let (types, body) = sql();
        let statement = format!("prepare {} ({types}) as {body}", name(number));
        execute_text(connection, statement).await?;
        self.0.insert((entity.to_owned(), delete), (version, number));
        Ok(Some(name(number)))
    }
}

fn name(number: usize) -> String {
    format!("cloud_sync_{number}")
}

async fn execute_text(connection: &mut PgConnection, sql: String) -> Result<(), DbError> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

impl ApplyPool {
    /// Connections like these, made when they are first needed.
    pub(crate) fn new(options: &PgConnectOptions) -> Self {
        let options = options.clone().options([
            ("enable_seqscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("plan_cache_mode", "force_generic_plan"),
        ]);
        Self {
            options,
            idle: Mutex::default(),
            places: Semaphore::new(CONNECTIONS),
            queues: Mutex::default(),
        }
    }

    /// Waits in the site's queue.
    pub(crate) async fn site_queue(&self, site: &Arc<str>) -> Result<QueueHead, DbError> {
        let queue = {
            let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(queues.entry(Arc::clone(site)).or_default())
        };
        let head = patient(Arc::clone(&queue.head).lock_owned()).await?;
        Ok(QueueHead { queue, head })
    }

    /// A connection: one at rest, else a new one.
    pub(crate) async fn take(&self) -> Result<ApplyConnection<'_>, DbError> {
        let place = patient(self.places.acquire())
            .await?
            .map_err(|_| DbError::Transient("the server is stopping".to_owned()))?;
        loop {
            let kept = self.idle().pop();
            let (connection, prepared) = match kept {
                Some(mut kept) => {
                    if kept.since.elapsed() > SILENT && kept.connection.ping().await.is_err() {
                        continue;
                    }
                    (kept.connection, kept.prepared)
                }
                None => (self.options.connect().await?, PreparedStatements::default()),
            };
            return Ok(ApplyConnection {
                connection,
                prepared,
                _place: place,
            });
        }
    }

    /// Takes a connection back on which nothing is under way.
    pub(crate) fn give_back(&self, writer: ApplyConnection<'_>) {
        self.idle().push(IdleConnection {
            connection: writer.connection,
            prepared: writer.prepared,
            since: Instant::now(),
        });
    }

    /// Closes the connections at rest, and gives no more out.
    pub(crate) async fn close(&self) {
        self.places.close();
        let idle = std::mem::take(&mut *self.idle());
        for kept in idle {
            // The server closes its end by itself otherwise.
            let _ = kept.connection.close().await;
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<IdleConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn patient<T>(waiting: impl Future<Output = T>) -> Result<T, DbError> {
    timeout(PATIENCE, waiting)
        .await
        .map_err(|_| DbError::Transient("too many requests wait".to_owned()))
}
