//! The reference cloud server: rows in its own PostgreSQL, files on disk, many sites in one cloud.
//!
//! Always holds:
//! - `POST /changes` is answered after the commit. A batch is applied once and in its turn, and an older
//!   version never overwrites a newer one ([`changes`]).
//! - A request belongs to the site whose key it carries ([`http`]); sites share tables, and never see each
//!   other's rows.
//! - A file is visible when its content is whole and on disk, and confirmed when its name is on disk too
//!   ([`files`]).
//! - What a request can take is bounded: its body, unpacked ([`http`]), the rows of a statement ([`rows`]),
//!   the time between two pieces of it, the connections.
//! - No answer and no log line carries a row's value or a key.
//!
//! A request travels: `crate::serve` -> [`http`] (who asks, how large the body may be) -> [`changes`],
//! [`rows`], [`tables`] or [`files`] -> [`db`].
//!
//! - [`changes`]: `POST /changes`. Reads the lines, decides whether it is the batch's turn, applies the
//!   batch.
//! - [`rows`]: rows on their way into a table, and the baseline's routes for rows. Many rows become one
//!   statement with an array for each column; a batch of few rows is one round trip; rows that are new to
//!   their table are copied.
//! - [`tables`]: each entity's table and its columns; `PUT /schema`.
//! - [`files`]: uploads, and the files that were uploaded.
//! - [`db`]: connections, and what an error of PostgreSQL means.
//!
//! On failure: a change that does not fit is refused alone, with a reason; a request that cannot be carried
//! out gets an answer that says whether to try again, and its transaction is rolled back.

mod changes;
mod db;
mod files;
mod http;
mod rows;
mod tables;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::db::apply_pool::ApplyPool;
use self::db::pool;
pub use self::files::upload::read_parts;
use self::files::{group_commit::GroupCommit, signed_url::UrlSigner, tus, upload};
use self::http::api_error::{ApiError, ApiResult};
use self::http::auth::AuthThrottle;
pub use self::http::auth::KeyRing;
use self::http::body::MemoryBudget;
use self::http::site_shares::{ServerCapacity, SiteShares};
use self::tables::schema::TableCache;
use crate::error::{Error, Result};
use crate::liveness::Liveness;
use crate::serve::{self, ConnectionLimits};
use crate::wire::Capability;
pub use crate::wire::read_changes;

/// The default of [`ReceiverSettings::body_limit`]: 64 MiB.
pub const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// What a receiver offers besides the baseline.
const CAPABILITIES: [Capability; 6] = [
    Capability::Bulk,
    Capability::Delete,
    Capability::Changes,
    Capability::Schema,
    Capability::Tus,
    Capability::ContentHash,
];

/// The largest upload, unless [`Receiver::with_upload_limit`] says otherwise: 16 GiB.
const UPLOAD_LIMIT: u64 = 16 * 1024 * 1024 * 1024;

/// Clients' connections at once.
const MAX_CONNECTIONS: usize = 1024;

/// Requests that are in progress when the server stops have this long.
const DRAIN: Duration = Duration::from_secs(8);

/// What an interrupted upload has left behind is removed after this time.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// How a receiver is set up.
#[derive(Clone)]
pub struct ReceiverSettings {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Its own PostgreSQL database.
    pub database_url: String,
    /// The folder of the uploaded files. It is made if it does not exist.
    pub files: PathBuf,
    /// The URL under which clients reach it, without `/api`; `None` means `http://` and its address.
    pub public_url: Option<String>,
    /// The valid keys of each site.
    pub keys: BTreeMap<String, Vec<String>>,
    /// How long the URL of an uploaded file holds; `None` means for ever: whoever has it can read the file.
    pub url_valid: Option<Duration>,
    /// Whether every applied change is also written to `cloud_meta.history`.
    pub history: bool,
    /// The largest JSON or NDJSON body, in bytes after unpacking.
    pub body_limit: usize,
    /// The capabilities that it offers; `None` means all. `PUT /schema` works even if it is not offered, as
    /// there is no other way to make a table.
    pub capabilities: Option<Vec<String>>,
}

impl ReceiverSettings {
    /// On any free port of this machine, with all capabilities and no keys yet.
    pub fn new(database_url: &str, files: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            database_url: database_url.to_owned(),
            files: files.into(),
            public_url: None,
            url_valid: None,
            keys: BTreeMap::new(),
            history: false,
            body_limit: BODY_LIMIT,
            capabilities: None,
        }
    }

    /// Listens on this address.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Takes this key for the site, besides others that it has.
    #[must_use]
    pub fn key(mut self, site: &str, key: &str) -> Self {
        self.keys.entry(site.to_owned()).or_default().push(key.to_owned());
        self
    }
}

/// What all requests share.
struct Shared {
    pool: PgPool,
    apply_pool: Arc<ApplyPool>,
    tables: TableCache,
    keys: KeyRing,
    auth_throttle: AuthThrottle,
    shares: SiteShares,
    memory: MemoryBudget,
    /// Lists at once: each holds a connection for as long as its reader takes.
    lists: Arc<Semaphore>,
    files: PathBuf,
    group_commit: GroupCommit,
    upload_limit: u64,
    /// An unfinished upload is removed after this time without progress.
    upload_expiry: Duration,
    active_uploads: tus::active::ActiveUploads,
    public_url: String,
    /// Signs the URLs of files, if they hold for a time only.
    url_signer: Option<UrlSigner>,
    history: bool,
    capabilities: Vec<Capability>,
}

impl Shared {
    fn offers(&self, capability: Capability) -> ApiResult<()> {
        if self.capabilities.contains(&capability) {
            Ok(())
        } else {
            Err(ApiError::not_offered(capability))
        }
    }
}

/// The reference cloud server, bound to its port.
pub struct Receiver {
    listener: TcpListener,
    address: SocketAddr,
    shared: Shared,
    liveness: Liveness,
}

impl Receiver {
    /// Connects to the database and brings its schema up to date, prepares the files' folder, and binds the
    /// port.
    ///
    /// # Errors
    /// Settings that cannot be used; a database, folder or port that cannot.
    pub async fn bind(settings: ReceiverSettings) -> Result<Self> {
        let keys = KeyRing::new(&settings.keys)?;
        let capabilities = match &settings.capabilities {
            None => CAPABILITIES.to_vec(),
            Some(names) => offered(names)?,
        };
        let files = prepare_folders(&settings.files)
            .map_err(|error| Error::local("prepare the folder of the receiver's files", error))?;
        let options = pool::connect_options(&settings.database_url)?;
        let apply_pool = ApplyPool::new(&options)?;
        let pool = pool::open(options).await?;
        let url_signer = match settings.url_valid {
            None => None,
            Some(valid) => Some(UrlSigner::new(pool::url_key(&pool).await?, valid)),
        };
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|error| Error::local(format!("listen on {}", settings.listen), error))?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::local("read the address of the port", error))?;
        let public_url = settings
            .public_url
            .unwrap_or_else(|| format!("http://{address}"))
            .trim_end_matches('/')
            .to_owned();
        let memory = MemoryBudget::new(settings.body_limit);
        let lists = pool::CONNECTIONS as usize / 2;
        let shares = SiteShares::new(ServerCapacity {
            memory: memory.units(),
            connections: pool::CONNECTIONS as usize,
            lists,
            client_connections: MAX_CONNECTIONS,
        });
        Ok(Self {
            listener,
            address,
            shared: Shared {
                group_commit: GroupCommit::new(pool.clone(), files.clone()),
                pool,
                apply_pool: Arc::new(apply_pool),
                tables: TableCache::default(),
                keys,
                auth_throttle: AuthThrottle::default(),
                shares,
                memory,
                lists: Arc::new(Semaphore::new(lists)),
                files,
                upload_limit: UPLOAD_LIMIT,
                upload_expiry: tus::EXPIRY,
                active_uploads: Default::default(),
                public_url,
                url_signer,
                history: settings.history,
                capabilities,
            },
            liveness: Liveness::default(),
        })
    }

    /// The valid keys, to replace them while it serves.
    pub fn ring(&self) -> KeyRing {
        self.shared.keys.clone()
    }

    /// The largest upload, in bytes.
    #[must_use]
    pub fn with_upload_limit(mut self, bytes: u64) -> Self {
        self.shared.upload_limit = bytes;
        self
    }

    /// How long an unfinished resumable upload is kept after its last progress; 24 hours unless set.
    #[must_use]
    pub fn with_upload_expiry(mut self, expiry: Duration) -> Self {
        self.shared.upload_expiry = expiry;
        self
    }

    /// The tasks that can be asked whether they still run.
    pub(crate) fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// Where it listens. The API's base URL is `http://<address>/api`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is cancelled, lets the requests in progress end, and closes the database's
    /// connections.
    ///
    /// # Errors
    /// None at present: what fails while serving fails a request or a connection.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<()> {
        let pool = self.shared.pool.clone();
        let apply_pool = Arc::clone(&self.shared.apply_pool);
        let limits = ConnectionLimits::new(MAX_CONNECTIONS, DRAIN);
        let shared = Arc::new(self.shared);
        let uploads = shared.active_uploads.clone();
        let stop_uploads = async {
            shutdown.cancelled().await;
            // A client continues at the offset that is noted, with any receiver.
            uploads.stop_all().await;
        };
        let sweep = tus::sweep::run(Arc::clone(&shared), shutdown.clone());
        let serve = serve::serve(
            self.listener,
            http::router::router(shared),
            limits,
            shutdown.clone(),
        );
        let serve = self.liveness.answering("server", serve);
        tokio::join!(serve, stop_uploads, sweep);
        // A list whose reader has gone may hold a connection a little longer; nothing waits for that.
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            apply_pool.close().await;
            pool.close().await;
        })
        .await;
        Ok(())
    }
}

/// The capabilities with these names.
fn offered(names: &[String]) -> Result<Vec<Capability>> {
    let offered = names.iter().map(|name| {
        Capability::from_name(name)
            .filter(|capability| CAPABILITIES.contains(capability))
            .ok_or_else(|| {
                Error::config(
                    format!("offer the capability {name:?}"),
                    "the receiver has no such capability",
                )
                .remedy(format!(
                    "choose from {}",
                    CAPABILITIES.map(Capability::name).join(", ")
                ))
            })
    });
    offered.collect()
}

/// Makes the folders, and removes what interrupted uploads have left behind. Returns the folder without links
/// in it.
fn prepare_folders(files: &Path) -> std::io::Result<PathBuf> {
    let incoming = files.join(upload::INCOMING);
    std::fs::create_dir_all(&incoming)?;
    for entry in std::fs::read_dir(&incoming)? {
        let entry = entry?;
        let age = entry
            .metadata()
            .and_then(|file| file.modified())
            .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        // A younger one may belong to another receiver that shares the folder.
        if age.is_ok_and(|age| age > ABANDONED) {
            std::fs::remove_file(entry.path())?;
        }
    }
    files.canonicalize()
}
