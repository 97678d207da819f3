//! Runs the demo: starts a site and its cloud, replicates, and reports.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::equality::{self, EqualityReport};
use super::postgres::PrivateServer;
use super::school;
use super::traffic::{self, Rates};
use crate::config::{LoadOptions, Settings};
use crate::control::status::ReplicatorState;
use crate::control::{Operator, StatusReport, page_url};
use crate::error::{Error, Kind, Result};
use crate::receiver::{BODY_LIMIT, Receiver, ReceiverSettings};
use crate::reconcile::NoObserver;
use crate::reconcile::backfill::RowSpan;
use crate::replicator::{self, Replicator};
use crate::source::identity::OutboxDeclaration;
use crate::source::install;

const SITE: &str = "college";

/// How long there is traffic with `--once`, before the comparison.
const TRAFFIC_TIME: Duration = Duration::from_secs(12);

/// How long `--once` waits until the cloud equals the site.
const EQUALITY_TIMEOUT: Duration = Duration::from_secs(60);

/// How to run the demo.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The folder for databases and files; `None` for a temporary one.
    pub folder: Option<PathBuf>,
    /// The sample school's seed.
    pub seed: u64,
    /// Whether to end when the cloud equals the site.
    pub once: bool,
}

/// The proof that both sides hold the same data.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    /// Rows sent, by entity, in the catalogue's order.
    pushed: Vec<u64>,
    equality: EqualityReport,
}

impl DemoReport {
    /// Whether the cloud has every row and every file, and all are equal.
    pub fn equal(&self) -> bool {
        self.equality.equal
    }
}

/// Runs the demo until `shutdown`. With [`DemoOptions::once`], runs it until the cloud equals the site and
/// returns a report.
///
/// # Errors
/// The error of the first part that cannot start or that fails.
pub async fn run_demo(
    options: DemoOptions,
    shutdown: CancellationToken,
    say: impl Fn(&str) + Send + Sync + Clone + 'static,
) -> Result<Option<DemoReport>> {
    let (folder, _temporary) = create_folder(&options)?;
    say(&format!("databases and files are in {}", folder.display()));
    let (site_and_cloud, receiver) = SiteAndCloud::start(&folder, &options, &say).await?;
    let report = site_and_cloud.run(receiver, &options, &shutdown, &say).await;
    site_and_cloud.server.stop().await?;
    report
}

fn create_folder(options: &DemoOptions) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    use std::os::unix::fs::PermissionsExt;
    let local = |error| Error::local("create the demo's folder", error);
    if let Some(folder) = &options.folder {
        std::fs::create_dir_all(folder).map_err(local)?;
        return Ok((folder.canonicalize().map_err(local)?, None));
    }
    // If we are root, the private server runs as another user, who must be able to enter its folder.
    let temporary = tempfile::Builder::new()
        .prefix("cloud-sync-demo-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .map_err(local)?;
    Ok((temporary.path().to_owned(), Some(temporary)))
}

/// A site and its cloud, before the replicator starts.
struct SiteAndCloud {
    server: PrivateServer,
    media: PathBuf,
    cloud_files: PathBuf,
    settings: Settings,
}

impl SiteAndCloud {
    async fn start(folder: &Path, options: &DemoOptions, say: &impl Fn(&str)) -> Result<(Self, Receiver)> {
        let server = PrivateServer::start(&folder.join("postgres")).await?;
        say("started a private PostgreSQL server");
        server.create_database("college").await?;
        server.create_database("cloud").await?;
        let media = folder.join("media");
        let counts = school::create(&server.url("college"), &media, options.seed, say).await?;
        let rows: u64 = counts.rows.iter().map(|(_, rows)| rows).sum();
        say(&format!("the sample school has {rows} rows"));
        let key = blake3::hash(format!("demo {}", options.seed).as_bytes()).to_hex()[..32].to_owned();
        let cloud_files = folder.join("cloud-files");
        let receiver = Receiver::bind(ReceiverSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            database_url: server.url("cloud"),
            files: cloud_files.clone(),
            public_url: None,
            url_valid: None,
            keys: [(SITE.to_owned(), vec![key.clone()])].into_iter().collect(),
            history: false,
            body_limit: BODY_LIMIT,
            capabilities: None,
        })
        .await?;
        let settings = Settings::load(LoadOptions {
            config: None,
            overrides: [
                ("source.database_url", server.url("college")),
                ("source.source_id", SITE.to_owned()),
                ("cloud.url", format!("http://{}/api", receiver.address())),
                ("cloud.key", key),
                ("media.root", media.display().to_string()),
                ("store.path", folder.join("store").display().to_string()),
                ("control.listen", "127.0.0.1:0".to_owned()),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .to_vec(),
            env: std::collections::BTreeMap::new(),
            dir: folder.to_owned(),
        })?
        .settings;
        let site_and_cloud = Self {
            server,
            media,
            cloud_files,
            settings,
        };
        Ok((site_and_cloud, receiver))
    }

    /// Replicates while there is traffic. Every task ends before this returns.
    async fn run(
        &self,
        receiver: Receiver,
        options: &DemoOptions,
        shutdown: &CancellationToken,
        say: &(impl Fn(&str) + Send + Sync + Clone + 'static),
    ) -> Result<Option<DemoReport>> {
        let stop = shutdown.child_token();
        let guard = stop.clone().drop_guard();
        let receiver_stop = CancellationToken::new();
        let receiver_guard = receiver_stop.clone().drop_guard();
        let address = receiver.address();
        let receiving = tokio::spawn(receiver.serve(receiver_stop));
        say(&format!(
            "the receiver (the cloud's server) listens on http://{address}/api"
        ));
        install::init(
            self.settings.require_database_url()?,
            &self.settings.catalogue,
            OutboxDeclaration::Nothing,
        )
        .await?;
        say("installed capture: the outbox contains every change from now on");
        let replicator = Replicator::new(&self.settings)?;
        let replicating = tokio::spawn({
            let (replicator, stop, say) = (replicator.clone(), stop.clone(), say.clone());
            let token = self.settings.store.path.join("control.token");
            async move {
                replicator
                    .run(stop, |address| {
                        say(&format!(
                            "the page: {}; sign in with the token that `cat {}` prints",
                            page_url(address),
                            token.display()
                        ));
                        say(&format!(
                            "the operator API: curl -H \"Authorization: Bearer $(cat {})\" \
                             http://{address}/api/cloud-sync/status",
                            token.display()
                        ));
                    })
                    .await
            }
        });
        while replicator.status().await?.state == ReplicatorState::Starting && !replicating.is_finished() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let traffic_stop = stop.child_token();
        let rates = if options.once {
            fast_rates()
        } else {
            Rates::default()
        };
        let (url, media, seed) = (self.server.url("college"), self.media.clone(), options.seed);
        let traffic = tokio::spawn({
            let (stop, say) = (traffic_stop.clone(), say.clone());
            let once = options.once;
            async move {
                let observe = move |line: &str| {
                    if !once {
                        say(line);
                    }
                };
                traffic::run_at(rates, url, media, seed, stop, observe).await
            }
        });
        say("backfilling the rows that existed before, while traffic goes on");
        let backfilled =
            replicator::backfill(&self.settings, &[], RowSpan::Retention, false, &NoObserver, &stop).await?;
        let rows: u64 = backfilled.pushed.iter().map(|(_, rows)| rows).sum();
        say(&format!("backfilled {rows} rows"));
        let report = if options.once {
            tokio::select! {
                () = tokio::time::sleep(TRAFFIC_TIME) => {}
                () = stop.cancelled() => {}
            }
            traffic_stop.cancel();
            join_result("live traffic", traffic.await)?;
            say("stopped the traffic: waiting until the cloud equals the site");
            Some(self.wait_for_equality(&replicator, &stop).await?)
        } else {
            self.report_status(&replicator, &stop, say).await;
            join_result("live traffic", traffic.await)?;
            None
        };
        drop(guard);
        join_result("the replicator", replicating.await)?;
        drop(receiver_guard);
        join_result("the receiver", receiving.await)?;
        Ok(report)
    }

    /// Prints the status every five seconds, until `stop`.
    async fn report_status(
        &self,
        replicator: &Arc<Replicator>,
        stop: &CancellationToken,
        say: &impl Fn(&str),
    ) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
                () = stop.cancelled() => return,
            }
            match replicator.status().await {
                Ok(status) => say(&status_line(&status)),
                Err(error) => say(&format!("status: {error}")),
            }
        }
    }

    /// Waits until nothing is left to send, and then compares both sides until they are equal.
    async fn wait_for_equality(
        &self,
        replicator: &Arc<Replicator>,
        stop: &CancellationToken,
    ) -> Result<DemoReport> {
        let deadline = tokio::time::Instant::now() + EQUALITY_TIMEOUT;
        loop {
            let status = replicator.status().await?;
            let idle = status.state == ReplicatorState::Replicating
                && status.lag.is_some_and(|lag| lag.changes == 0)
                && status.files.waiting == 0;
            if idle {
                let equality = equality::compare(
                    &self.server.url("college"),
                    &self.server.url("cloud"),
                    &self.settings.catalogue,
                    &self.media,
                    &self.cloud_files,
                    SITE,
                )
                .await?;
                if equality.equal || tokio::time::Instant::now() > deadline {
                    let pushed = status.entities.iter().map(|(_, &pushed)| pushed).collect();
                    return Ok(DemoReport { pushed, equality });
                }
            }
            if tokio::time::Instant::now() > deadline + EQUALITY_TIMEOUT || stop.is_cancelled() {
                return Err(Error::new(
                    Kind::Local,
                    "wait until the cloud equals the site",
                    format!("the last status is: {}", status_line(&status)),
                ));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Rates for a short run: every activity happens at least once.
fn fast_rates() -> Rates {
    Rates {
        recognition: Duration::from_millis(200),
        attendance: Duration::from_millis(400),
        slip: Duration::from_secs(2),
        teaching_load: Duration::from_secs(3),
        recording: Duration::from_secs(6),
        recording_length: Duration::from_secs(4),
    }
}

fn join_result(part: &str, task: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    task.unwrap_or_else(|error| Err(Error::local(format!("run {part}"), std::io::Error::other(error))))
}

/// The status, as one line.
fn status_line(status: &StatusReport) -> String {
    let lag = status.lag.unwrap_or_default();
    let latency = status
        .latency
        .map_or(String::new(), |latency| format!(", p50 {:.1} ms", latency.p50_ms));
    format!(
        "{}: {} changes accepted{latency}, {} waiting; files: {} uploaded, {} waiting, {} missing{}",
        status.state.word(),
        status.counts.accepted,
        lag.changes,
        status.files.uploaded,
        status.files.waiting,
        status.files.missing,
        status
            .reason
            .as_ref()
            .map_or(String::new(), |reason| format!("; {reason}")),
    )
}

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "entity",
            "in retention",
            "pushed",
            "in the cloud",
            "equal",
            "files",
            "bytes",
            "verified",
        ]);
        let number = |value: u64| Cell::new(value).set_alignment(CellAlignment::Right);
        let mut files = (0, 0, 0);
        for (entity, &pushed) in self.equality.entities.iter().zip(&self.pushed) {
            table.add_row([
                Cell::new(&entity.entity),
                number(entity.in_retention),
                number(pushed),
                number(entity.in_cloud),
                number(entity.equal),
                number(entity.files),
                number(entity.file_bytes),
                number(entity.files_verified),
            ]);
            files.0 += entity.files;
            files.1 += entity.file_bytes;
            files.2 += entity.files_verified;
        }
        writeln!(f, "{}", table.trim_fmt())?;
        writeln!(
            f,
            "files: {} in all, {} bytes, {} verified",
            files.0, files.1, files.2
        )?;
        f.write_str(if self.equal() {
            "the cloud equals the site"
        } else {
            "THE CLOUD DIFFERS FROM THE SITE"
        })
    }
}
