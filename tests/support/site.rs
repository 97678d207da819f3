//! A site and its cloud for a test: a database of its own with the school's tables, a media folder, a store,
//! and the receiver as the cloud; or another server in its place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use cloud_sync::checkpoint::SledStore;
use cloud_sync::config::{LoadOptions, Settings};
use cloud_sync::control::status::ReplicatorState;
use cloud_sync::control::{Operator, StatusReport};
use cloud_sync::demo::equality::{self, EqualityReport};
use cloud_sync::drain::{Drain, ReplicationState};
use cloud_sync::error::{Kind, Result};
use cloud_sync::metrics::Metrics;
use cloud_sync::receiver::{BODY_LIMIT, Receiver, ReceiverSettings};
use cloud_sync::replicator::{self, Replicator};
use cloud_sync::source::connect::Session;
use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::{drift, install};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use super::postgres::{Server, free_port};

pub(crate) const SCHOOL: &str = include_str!("../../sql/sample_school.sql");

/// The site's name in the cloud, and its key.
pub(crate) const SITE: &str = "college";
pub(crate) const KEY: &str = "a-site-key-for-tests";

/// The URL of a cloud at which nobody listens.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:9/api";

/// How long a test waits for what must happen; no test asserts a time.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Connects to a database of the private server.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A receiver, serving.
pub(crate) struct Cloud {
    pub(crate) url: String,
    pub(crate) database_url: String,
    pub(crate) files: PathBuf,
    settings: ReceiverSettings,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<()>>>,
    #[allow(dead_code, reason = "for the soak")]
    folder: tempfile::TempDir,
}

impl Cloud {
    pub(crate) async fn start(hint: &str) -> Self {
        Self::start_on(Server::get(), hint).await
    }

    /// With its database on this server.
    pub(crate) async fn start_on(server: &Server, hint: &str) -> Self {
        provider();
        let database_url = server.database(&format!("{hint}_cloud")).await;
        let folder = tempfile::tempdir().unwrap();
        let settings = ReceiverSettings {
            listen: ([127, 0, 0, 1], free_port()).into(),
            database_url: database_url.clone(),
            files: folder.path().join("files"),
            public_url: None,
            url_valid: None,
            keys: BTreeMap::from([(SITE.to_owned(), vec![KEY.to_owned()])]),
            history: true,
            body_limit: BODY_LIMIT,
            capabilities: None,
        };
        let mut cloud = Self {
            url: String::new(),
            files: folder.path().join("files"),
            database_url,
            settings,
            stop: CancellationToken::new(),
            task: None,
            folder,
        };
        cloud.back().await;
        cloud
    }

    /// The keys that it takes once it serves again.
    pub(crate) fn set_keys(&mut self, keys: &[&str]) {
        let keys = keys.iter().map(|&key| key.to_owned()).collect();
        self.settings.keys = BTreeMap::from([(SITE.to_owned(), keys)]);
    }

    /// The key of a further site that it takes once it serves again.
    pub(crate) fn add_site(&mut self, site: &str, key: &str) {
        self.settings.keys.insert(site.to_owned(), vec![key.to_owned()]);
    }

    /// The largest body that it takes once it serves again.
    pub(crate) fn set_body_limit(&mut self, bytes: usize) {
        self.settings.body_limit = bytes;
    }

    /// Whether it keeps a history once it serves again.
    pub(crate) fn set_history(&mut self, history: bool) {
        self.settings.history = history;
    }

    /// What the URLs of its files begin with once it serves again.
    pub(crate) fn set_public_url(&mut self, url: &str) {
        self.settings.public_url = Some(url.parse().unwrap());
    }

    /// How long the URLs of its files hold once it serves again.
    pub(crate) fn set_url_valid(&mut self, valid: Duration) {
        self.settings.url_valid = Some(valid);
    }

    /// Where it finds its database once it serves again; tests go on using [`Cloud::database_url`].
    pub(crate) fn set_database(&mut self, url: String) {
        self.settings.database_url = url;
    }

    /// Serves again after [`Cloud::away`], on the same port.
    pub(crate) async fn back(&mut self) {
        let receiver = Receiver::bind(self.settings.clone()).await.unwrap();
        self.settings.listen = receiver.address();
        self.url = format!("http://{}/api", receiver.address());
        self.stop = CancellationToken::new();
        self.task = Some(tokio::spawn(receiver.serve(self.stop.clone())));
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.settings.listen
    }

    /// Its folder.
    #[allow(dead_code, reason = "for the soak")]
    pub(crate) fn folder(&mut self) -> &mut tempfile::TempDir {
        &mut self.folder
    }

    /// Goes away: the port answers no more.
    pub(crate) async fn away(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap().unwrap();
        }
    }
}

/// An `[[entity]]` on a table, with further lines.
pub(crate) fn entity(name: &str, table: &str, key: &[&str], more: &str) -> String {
    format!("[[entity]]\nname = \"{name}\"\ntable = \"{table}\"\nkey = {key:?}\n{more}\n")
}

/// The settings of `cloud-sync.toml` in a folder.
fn settings_of(folder: &tempfile::TempDir) -> Settings {
    let options = LoadOptions {
        config: Some(folder.path().join("cloud-sync.toml")),
        overrides: Vec::new(),
        env: BTreeMap::new(),
        dir: folder.path().to_owned(),
    };
    Settings::load(options).unwrap().settings
}

/// A site.
pub(crate) struct Site {
    pub(crate) settings: Settings,
    pub(crate) database_url: String,
    pub(crate) client: Client,
    pub(crate) folder: tempfile::TempDir,
}

impl Site {
    /// A site with the school's empty tables and capture installed, whose cloud is at `cloud_url` and knows
    /// `key`.
    pub(crate) async fn school(hint: &str, cloud_url: &str, key: &str) -> Self {
        let site = Self::bare(hint, cloud_url, key, SCHOOL, "").await;
        site.init().await;
        site
    }

    /// As [`Site::school`], with a receiver as its cloud.
    pub(crate) async fn school_with_cloud(hint: &str) -> (Cloud, Self) {
        Self::captured(hint, SCHOOL, "").await
    }

    /// A site with these tables and capture installed, the configuration file's further text, and a receiver
    /// as its cloud.
    pub(crate) async fn captured(hint: &str, tables: &str, config: &str) -> (Cloud, Self) {
        let cloud = Cloud::start(hint).await;
        let site = Self::bare(hint, &cloud.url, KEY, tables, config).await;
        site.init().await;
        (cloud, site)
    }

    /// A site with these tables, and the configuration file's further text; capture is not installed.
    pub(crate) async fn bare(hint: &str, cloud_url: &str, key: &str, tables: &str, config: &str) -> Self {
        Self::bare_on(Server::get(), hint, cloud_url, key, tables, config).await
    }

    /// As [`Site::bare`], with its database on this server.
    pub(crate) async fn bare_on(
        server: &Server,
        hint: &str,
        cloud_url: &str,
        key: &str,
        tables: &str,
        config: &str,
    ) -> Self {
        let database_url = server.database(&format!("{hint}_site")).await;
        Self::at(database_url, cloud_url, key, tables, config).await
    }

    /// As [`Site::bare`], in a database that a test has made itself.
    pub(crate) async fn at(
        database_url: String,
        cloud_url: &str,
        key: &str,
        tables: &str,
        config: &str,
    ) -> Self {
        provider();
        let client = connect(&database_url).await;
        client.batch_execute(tables).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("media")).unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "[source]\ndatabase_url = {database_url:?}\nsource_id = \"{SITE}\"\n\
             [cloud]\nurl = {cloud_url:?}\nkey = {key:?}\ntimeout = \"5s\"\n\
             [media]\nroot = {:?}\nsettle = \"100ms\"\n[store]\npath = {:?}\n\
             [control]\nlisten = \"127.0.0.1:0\"\n[schedule]\nsync = \"off\"\n{config}",
            at("media"),
            at("store"),
        );
        std::fs::write(folder.path().join("cloud-sync.toml"), text).unwrap();
        let settings = settings_of(&folder);
        Self {
            settings,
            database_url,
            client,
            folder,
        }
    }

    /// Replaces a text of the configuration file, which is then read again.
    pub(crate) fn reconfigure(&mut self, from: &str, to: &str) {
        let path = self.folder.path().join("cloud-sync.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "no {from:?} in {text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        self.settings = settings_of(&self.folder);
    }

    /// What `init` says of a catalogue that it refuses.
    pub(crate) async fn refusal(hint: &str, tables: &str, config: &str) -> String {
        let site = Self::bare(hint, NOWHERE, KEY, tables, config).await;
        let url = site.settings.require_database_url().unwrap();
        let refused = install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing).await;
        let error = refused.expect_err("a refusal");
        assert_eq!(error.kind(), Kind::Config, "{error}");
        error.to_string()
    }

    pub(crate) async fn init(&self) {
        install::init(
            self.settings.require_database_url().unwrap(),
            &self.settings.catalogue,
            OutboxDeclaration::Nothing,
        )
        .await
        .unwrap();
    }

    pub(crate) fn media(&self) -> PathBuf {
        self.folder.path().join("media")
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// A drain whose steps the test takes itself.
    pub(crate) fn drain(&self) -> Drain {
        let (store, _) = SledStore::open(&self.settings.store.path.join("checkpoint")).unwrap();
        let names = self
            .settings
            .catalogue
            .entities()
            .iter()
            .map(|entity| entity.name.as_str());
        let state = Arc::new(ReplicationState::new(Arc::new(Metrics::new(names))));
        let cloud = replicator::cloud(&self.settings).unwrap();
        replicator::drain(&self.settings, cloud, Arc::new(store), state).unwrap()
    }

    /// The replicator, running in this process.
    pub(crate) fn replicate(&self) -> Running {
        Running::of(Replicator::new(&self.settings).unwrap())
    }

    /// The replicator, with the drift monitor looking at the capture all the time.
    pub(crate) fn replicate_monitoring_drift(&self) -> Running {
        Running::of(Replicator::monitoring_drift_every(&self.settings, Duration::from_millis(200)).unwrap())
    }

    /// Compares with what the receiver holds.
    pub(crate) async fn compare(&self, cloud: &Cloud) -> EqualityReport {
        equality::compare(
            &self.database_url,
            &cloud.database_url,
            &self.settings.catalogue,
            &self.media(),
            &cloud.files,
            SITE,
        )
        .await
        .unwrap()
    }

    /// Asserts that the receiver's rows equal the site's, and that these entities have no other rows there.
    pub(crate) async fn assert_equal(&self, cloud: &Cloud) {
        let report = self.compare(cloud).await;
        assert!(report.equal, "{report}");
        for (entity, about) in report.entities.iter().zip(self.settings.catalogue.entities()) {
            if about.retention.is_none() && about.deletes() == cloud_sync::catalogue::Deletes::Propagate {
                assert_eq!(entity.cloud_rows, entity.in_retention, "{report}");
            }
        }
    }
}

/// A running replicator.
pub(crate) struct Running {
    pub(crate) replicator: Arc<Replicator>,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Running {
    fn of(replicator: Arc<Replicator>) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(replicator.clone().run(stop.clone(), |_| {}));
        Self {
            replicator,
            stop,
            task,
        }
    }

    /// Waits until nothing waits.
    pub(crate) async fn caught_up(&self) -> StatusReport {
        self.until("caught up", is_caught_up).await
    }

    /// Waits until no row waits; files may.
    pub(crate) async fn rows_caught_up(&self) -> StatusReport {
        self.until("rows caught up", |status| {
            status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await
    }

    /// Waits until the status is so.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&StatusReport) -> bool) -> StatusReport {
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                let status = self.replicator.status().await.unwrap();
                if so(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        match waited.await {
            Ok(status) => status,
            Err(_) => panic!(
                "not {what} within {LIMIT:?}: {:#?}",
                self.replicator.status().await
            ),
        }
    }

    /// Ends it, whether or not it has failed.
    pub(crate) async fn abandon(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }

    /// Ends it in order.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Waits until nothing waits, capture is in place, no entity is parked, and nothing is left to compare: what
/// the columns tell now included, whether or not the replicator has looked at them since.
pub(crate) async fn until_whole(site: &Site, running: &Running) -> StatusReport {
    let catalogue = &site.settings.catalogue;
    // Types are called in a session of the program's as the program calls them.
    let url = site.database_url.as_str().into();
    let session = Session::open(&url, "test").await.unwrap();
    let watched = drift::watch(session.client(), catalogue).await.unwrap();
    let tables = watched
        .iter()
        .map(|(described, watched)| (watched.id, &described.table));
    drift::note_shapes(session.client(), tables).await.unwrap();
    let start = std::time::Instant::now();
    loop {
        let status = running.replicator.status().await.unwrap();
        let watched = drift::watch(session.client(), catalogue).await.unwrap();
        let is_captured = watched
            .iter()
            .all(|(_, watched)| watched.wrong.is_none() && watched.gap.is_none() && watched.parked.is_none());
        if is_captured && is_caught_up(&status) && status.capture.is_empty() && status.reason.is_none() {
            return status;
        }
        assert!(start.elapsed() < LIMIT, "not whole: {status:#?}\n{watched:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a running replicator has nothing left to send.
fn is_caught_up(status: &StatusReport) -> bool {
    status.lag.is_some_and(|lag| lag.changes == 0)
        && status.files.waiting == 0
        && status.state == ReplicatorState::Replicating
}
