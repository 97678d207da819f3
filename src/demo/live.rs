//! The demo itself: starts a site and its cloud, replicates, and reports.

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
use crate::control::{Operator, StatusReport};
use crate::error::{Error, Kind, Result};
use crate::receiver::{BODY_LIMIT, Receiver, ReceiverSettings};
use crate::reconcile::NoObserver;
use crate::reconcile::backfill::RowSpan;
use crate::replicator::{self, Replicator};
use crate::source::identity::OutboxDeclaration;
use crate::source::install;

const SITE: &str = "college";

/// How long `--once` lets the school live before it compares.
const LIVE: Duration = Duration::from_secs(12);

/// How long `--once` waits for the cloud to equal the site.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the demo shall do.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Where databases and files go; a temporary folder where none is named.
    pub folder: Option<PathBuf>,
    /// The sample school's seed.
    pub seed: u64,
    /// End when the cloud equals the site.
    pub once: bool,
}

/// The proof that both sides hold the same.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    /// Rows that were pushed, by entity, in the catalogue's order.
    pushed: Vec<u64>,
    equality: EqualityReport,
}

impl DemoReport {
    /// Whether every row and every file is there and equal.
    pub fn equal(&self) -> bool {
        self.equality.equal
    }
}

/// Runs the demo until `shutdown`, or with [`DemoOptions::once`] until the cloud equals the site; then there is a report.
///
/// # Errors
/// Whatever keeps a part from starting, each with its remedy.
pub async fn run_demo(
    plan: DemoOptions,
    shutdown: CancellationToken,
    say: impl Fn(&str) + Send + Sync + Clone + 'static,
) -> Result<Option<DemoReport>> {
    let (folder, _temporary) = folder(&plan)?;
    say(&format!("everything lies in {}", folder.display()));
    let (stand, receiver) = SiteAndCloud::start(&folder, &plan, &say).await?;
    let ended = stand.live(receiver, &plan, &shutdown, &say).await;
    stand.server.stop().await?;
    ended
}

fn folder(plan: &DemoOptions) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    use std::os::unix::fs::PermissionsExt;
    let local = |error| Error::local("make the demo's folder", error);
    if let Some(folder) = &plan.folder {
        std::fs::create_dir_all(folder).map_err(local)?;
        return Ok((folder.canonicalize().map_err(local)?, None));
    }
    // Run by root, the private server runs as another user, who must be able to reach its folder.
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
    async fn start(folder: &Path, plan: &DemoOptions, say: &impl Fn(&str)) -> Result<(Self, Receiver)> {
        let server = PrivateServer::start(&folder.join("postgres")).await?;
        say("a private PostgreSQL server runs");
        server.create_database("college").await?;
        server.create_database("cloud").await?;
        let media = folder.join("media");
        let counts = school::create(&server.url("college"), &media, plan.seed, say).await?;
        let rows: u64 = counts.rows.iter().map(|(_, rows)| rows).sum();
        say(&format!("the sample school has {rows} rows"));
        let key = blake3::hash(format!("demo {}", plan.seed).as_bytes()).to_hex()[..32].to_owned();
        let cloud_files = folder.join("cloud-files");
        let receiver = Receiver::bind(ReceiverSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            database_url: server.url("cloud"),
            files: cloud_files.clone(),
            public_url: None,
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
        let stand = Self {
            server,
            media,
            cloud_files,
            settings,
        };
        Ok((stand, receiver))
    }

    /// Replicates with traffic beside it. Every task ends before this does.
    async fn live(
        &self,
        receiver: Receiver,
        plan: &DemoOptions,
        shutdown: &CancellationToken,
        say: &(impl Fn(&str) + Send + Sync + Clone + 'static),
    ) -> Result<Option<DemoReport>> {
        let stop = shutdown.child_token();
        let guard = stop.clone().drop_guard();
        let receiver_stop = CancellationToken::new();
        let receiver_guard = receiver_stop.clone().drop_guard();
        let address = receiver.address();
        let received = tokio::spawn(receiver.serve(receiver_stop));
        say(&format!(
            "the receiver, the cloud's server, listens on http://{address}/api"
        ));
        install::init(
            self.settings.require_database_url()?,
            &self.settings.catalogue,
            OutboxDeclaration::Nothing,
        )
        .await?;
        say("capture is installed: every change from now on is in the outbox");
        let replicator = Replicator::new(&self.settings)?;
        let replicating = tokio::spawn({
            let (replicator, stop, say) = (replicator.clone(), stop.clone(), say.clone());
            let token = self.settings.store.path.join("control.token");
            async move {
                replicator
                    .run(stop, |address| {
                        say(&format!(
                            "the operator API: curl -H \"Authorization: Bearer $(cat {})\" http://{address}/api/cloud-sync/status",
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
        let rates = if plan.once { brisk() } else { Rates::default() };
        let (url, media, seed) = (self.server.url("college"), self.media.clone(), plan.seed);
        let living = tokio::spawn({
            let (stop, say) = (traffic_stop.clone(), say.clone());
            let once = plan.once;
            async move {
                let observe = move |line: &str| {
                    if !once {
                        say(line);
                    }
                };
                traffic::run_at(rates, url, media, seed, stop, observe).await
            }
        });
        say("backfilling what stood before, while the school goes on");
        let backfilled =
            replicator::backfill(&self.settings, &[], RowSpan::Window, false, &NoObserver, &stop).await?;
        let rows: u64 = backfilled.pushed.iter().map(|(_, rows)| rows).sum();
        say(&format!("backfilled {rows} rows"));
        let report = if plan.once {
            tokio::select! {
                () = tokio::time::sleep(LIVE) => {}
                () = stop.cancelled() => {}
            }
            traffic_stop.cancel();
            joined("live traffic", living.await)?;
            say("the school stands still: waiting until the cloud equals it");
            Some(self.proof(&replicator, &stop).await?)
        } else {
            self.tell(&replicator, &stop, say).await;
            joined("live traffic", living.await)?;
            None
        };
        drop(guard);
        joined("the replicator", replicating.await)?;
        drop(receiver_guard);
        joined("the receiver", received.await)?;
        Ok(report)
    }

    /// Says how it stands every five seconds, until `stop`.
    async fn tell(&self, replicator: &Arc<Replicator>, stop: &CancellationToken, say: &impl Fn(&str)) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
                () = stop.cancelled() => return,
            }
            match replicator.status().await {
                Ok(status) => say(&line(&status)),
                Err(error) => say(&format!("status: {error}")),
            }
        }
    }

    /// Waits until nothing waits, then compares both sides.
    async fn proof(&self, replicator: &Arc<Replicator>, stop: &CancellationToken) -> Result<DemoReport> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = replicator.status().await?;
            let still = status.state == ReplicatorState::Replicating
                && status.lag.is_some_and(|lag| lag.changes == 0)
                && status.files.waiting == 0;
            if still {
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
            if tokio::time::Instant::now() > deadline + PATIENCE || stop.is_cancelled() {
                return Err(Error::new(
                    Kind::Local,
                    "wait until the cloud equals the site",
                    format!("it still says: {}", line(&status)),
                ));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Traffic for a short life: everything happens at least once.
fn brisk() -> Rates {
    Rates {
        recognition: Duration::from_millis(200),
        attendance: Duration::from_millis(400),
        slip: Duration::from_secs(2),
        teaching_load: Duration::from_secs(3),
        recording: Duration::from_secs(6),
        recording_length: Duration::from_secs(4),
    }
}

fn joined(what: &str, task: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    task.unwrap_or_else(|error| Err(Error::local(format!("run {what}"), std::io::Error::other(error))))
}

/// The status in one line.
fn line(status: &StatusReport) -> String {
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
            "in window",
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
                number(entity.in_window),
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
