//! The operator API over real HTTP, against an operator that is scripted here; and the page, [`page`] over
//! real HTTP and [`browser`] in a real browser, against a real replicator.

mod browser;
mod page;
mod page_of_site;
mod tokens;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloud_sync::catalogue::{Catalogue, EntityIndex};
use cloud_sync::change::Position;
use cloud_sync::config::{LoadOptions, Settings};
use cloud_sync::control::client::ControlClient;
use cloud_sync::control::status::{LagStatus, ReplicatorState};
use cloud_sync::control::{
    ControlServer, Health, Operator, Overview, PauseScope, PauseStatus, RowInquiry, StatusReport, SyncReport,
    SyncRequest, token,
};
use cloud_sync::error::{Error, Kind, Result};
use cloud_sync::metrics::Metrics;
use cloud_sync::quarantine::QuarantineEntry;
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An operator whose syncs wait until the test lets them end.
struct ScriptedOperator {
    began: mpsc::UnboundedSender<SyncRequest>,
    may_end: Semaphore,
    running: AtomicUsize,
    health: Mutex<Health>,
    metrics: Metrics,
}

impl Operator for ScriptedOperator {
    async fn status(&self) -> Result<StatusReport> {
        let mut status = StatusReport::unknown(ReplicatorState::Replicating);
        status.lag = Some(LagStatus {
            changes: 2,
            age_seconds: 0.5,
        });
        Ok(status)
    }

    async fn sync_now(&self, request: SyncRequest) -> Result<SyncReport> {
        assert_eq!(
            self.running.fetch_add(1, Ordering::SeqCst),
            0,
            "one sync at a time"
        );
        self.began.send(request.clone()).unwrap();
        self.may_end.acquire().await.unwrap().forget();
        self.running.fetch_sub(1, Ordering::SeqCst);
        let catalogue = Catalogue::builtin();
        catalogue.select(&request.entities)?;
        let mut report = SyncReport::new(&catalogue);
        report.add(EntityIndex(0), "{\"room_id\" : 1}")?;
        match request.entities.as_slice() {
            [one] if one == "cameras" => report.fail("cameras", "Connection timeout"),
            [one] if one == "rooms" => {
                return Err(Error::new(Kind::CloudUnreachable, "sync", "the cloud is away"));
            }
            _ => {}
        }
        Ok(report)
    }

    fn health(&self) -> Health {
        self.health.lock().unwrap().clone()
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }

    async fn overview(&self, _ask_source: bool) -> Overview {
        Overview::default()
    }

    fn lag_now(&self) -> Option<Duration> {
        None
    }

    fn activity(&self) -> u64 {
        0
    }

    async fn why(&self, entity: &str, _key: &str) -> Result<RowInquiry> {
        Err(Error::config(format!("look at {entity}"), "no row is here"))
    }

    async fn quarantined(&self, _position: Position) -> Result<Vec<QuarantineEntry>> {
        Ok(Vec::new())
    }

    async fn retry(&self, _position: Position) -> Result<u64> {
        Ok(0)
    }

    async fn discard(&self, _position: Position) -> Result<u64> {
        Ok(0)
    }

    async fn pause(&self, scope: &PauseScope, _by: &str) -> Result<PauseStatus> {
        Err(Error::config(format!("pause {scope}"), "nothing runs here"))
    }

    async fn resume(&self, scope: &PauseScope, _by: &str) -> Result<PauseStatus> {
        Err(Error::config(format!("resume {scope}"), "nothing runs here"))
    }
}

struct OperatorApi {
    operator: Arc<ScriptedOperator>,
    began: mpsc::UnboundedReceiver<SyncRequest>,
    base: String,
    token: String,
    http: reqwest::Client,
    settings: Settings,
    shutdown: CancellationToken,
    served: JoinHandle<Result<()>>,
    _store: tempfile::TempDir,
}

fn settings(store: &tempfile::TempDir, listen: &str) -> Settings {
    let overrides = [
        ("store.path", store.path().to_str().unwrap()),
        ("control.listen", listen),
    ];
    let options = LoadOptions {
        config: None,
        overrides: overrides
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec(),
        env: std::collections::BTreeMap::new(),
        dir: store.path().to_owned(),
    };
    Settings::load(options).unwrap().settings
}

async fn daemon() -> OperatorApi {
    // Another test may have been faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = tempfile::tempdir().unwrap();
    let settings = settings(&store, "127.0.0.1:0");
    let secret = token::load_or_create(&settings).unwrap();
    let (began, watch) = mpsc::unbounded_channel();
    let operator = Arc::new(ScriptedOperator {
        began,
        may_end: Semaphore::new(0),
        running: AtomicUsize::new(0),
        health: Mutex::new(Health::Well),
        metrics: Metrics::new(["rooms"]),
    });
    let server = ControlServer::bind(&settings, secret.clone(), Arc::clone(&operator))
        .await
        .unwrap();
    let address = server.address();
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(server.serve(shutdown.clone()));
    let mut settings = settings;
    settings.control.listen = address;
    OperatorApi {
        operator,
        began: watch,
        base: format!("http://{address}"),
        token: secret.expose_secret().to_owned(),
        http: reqwest::Client::builder().no_proxy().build().unwrap(),
        settings,
        shutdown,
        served,
        _store: store,
    }
}

impl OperatorApi {
    async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = self
            .http
            .get(format!("{}{path}", self.base))
            .send()
            .await
            .unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// Asks for a sync in the background.
    fn sync(&self, body: &'static str) -> JoinHandle<(StatusCode, Value)> {
        let request = self
            .http
            .post(format!("{}/api/cloud-sync/sync-now", self.base))
            .bearer_auth(&self.token)
            .body(body);
        tokio::spawn(async move {
            let answer = request.send().await.unwrap();
            (answer.status(), answer.json().await.unwrap())
        })
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.served.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn everything_below_api_needs_the_token() {
    let daemon = daemon().await;
    for path in ["/api/cloud-sync/status", "/api/cloud-sync/sync-now", "/api/other"] {
        assert_eq!(daemon.get(path).await.0, StatusCode::UNAUTHORIZED, "{path}");
        let wrong = daemon
            .http
            .get(format!("{}{path}", daemon.base))
            .bearer_auth("wrong");
        assert_eq!(
            wrong.send().await.unwrap().status(),
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    let status = daemon
        .http
        .get(format!("{}/api/cloud-sync/status", daemon.base))
        .bearer_auth(&daemon.token)
        .send()
        .await
        .unwrap();
    assert_eq!(status.status(), StatusCode::OK);
    assert_eq!(status.headers()["cache-control"], "no-store");
    let status: Value = status.json().await.unwrap();
    assert_eq!(status["state"], "replicating");
    assert_eq!(status["lag"], json!({"changes": 2, "age_seconds": 0.5}));
    daemon.stop().await;
}

#[tokio::test]
async fn health_readiness_and_metrics_are_open_on_loopback() {
    let daemon = daemon().await;
    assert_eq!(daemon.get("/healthz").await.0, StatusCode::OK);
    assert_eq!(daemon.get("/readyz").await.0, StatusCode::OK);

    *daemon.operator.health.lock().unwrap() = Health::Starting("waiting for the source".into());
    assert_eq!(daemon.get("/healthz").await.0, StatusCode::OK);
    assert_eq!(daemon.get("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);

    *daemon.operator.health.lock().unwrap() = Health::Still("the cloud refused the key".into());
    for path in ["/healthz", "/readyz"] {
        let (status, body) = daemon.get(path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(body.contains("refused the key"), "{body}");
    }
    daemon.operator.metrics.accepted(EntityIndex(0)).inc();
    let (status, body) = daemon.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        body.contains("cloud_sync_changes_accepted_total{entity=\"rooms\"} 1"),
        "{body}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_sync_answers_its_report_and_its_errors() {
    let daemon = daemon().await;
    daemon.operator.may_end.add_permits(10);
    let (status, report) = daemon.sync("").await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(report["success"], true);
    assert_eq!(report["synced"]["rooms"], json!([1]));
    assert_eq!(report["summary"].as_object().unwrap().len(), 9);

    let (status, report) = daemon.sync("{\"entities\":[\"cameras\"]}").await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(report["success"], false);
    assert_eq!(
        report["errors"],
        json!(["Failed to sync cameras: Connection timeout"])
    );

    let (status, refusal) = daemon.sync("{\"entities\":[\"rooms\"]}").await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        (&refusal["success"], &refusal["exit_code"]),
        (&json!(false), &json!(4))
    );

    for body in ["{\"forse\":true}", "[1]", "{\"entities\":[\"leafs\"]}"] {
        let (status, refusal) = daemon.sync(body).await.unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(refusal["exit_code"], 2);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn different_syncs_never_run_at_the_same_time() {
    let mut daemon = daemon().await;
    let first = daemon.sync("{\"force\":true}");
    assert!(daemon.began.recv().await.unwrap().force);
    let other = daemon.sync("");
    daemon.operator.may_end.add_permits(2);
    assert_eq!(first.await.unwrap().0, StatusCode::OK);
    assert_eq!(other.await.unwrap().0, StatusCode::OK);
    assert!(!daemon.began.recv().await.unwrap().force);
    daemon.stop().await;
}

#[tokio::test]
async fn a_caller_who_hangs_up_breaks_nothing_off() {
    let mut daemon = daemon().await;
    let impatient = daemon.sync("");
    daemon.began.recv().await.unwrap();
    impatient.abort();
    assert!(impatient.await.unwrap_err().is_cancelled());
    assert_eq!(daemon.operator.running.load(Ordering::SeqCst), 1);
    daemon.operator.may_end.add_permits(2);
    assert_eq!(daemon.sync("{\"force\":true}").await.unwrap().0, StatusCode::OK);
    daemon.stop().await;
}

#[tokio::test]
async fn the_command_lines_client_finds_token_and_daemon() {
    let daemon = daemon().await;
    daemon.operator.may_end.add_permits(10);
    let client = ControlClient::new(&daemon.settings).unwrap();
    assert_eq!(
        client.status().await.unwrap().unwrap().state,
        ReplicatorState::Replicating
    );
    let report = client.sync_now(&SyncRequest::default()).await.unwrap().unwrap();
    assert!(report.success());
    let away = SyncRequest {
        force: false,
        entities: vec!["rooms".into()],
    };
    let error = client.sync_now(&away).await.unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("the cloud is away"), "{error}");

    let mut wrong = daemon.settings.clone();
    wrong.control.token = Some("wrong".into());
    let error = ControlClient::new(&wrong).unwrap().status().await.unwrap_err();
    assert_eq!(error.exit_code(), 2);

    let settings = daemon.settings.clone();
    daemon.stop().await;
    let client = ControlClient::new(&settings).unwrap();
    assert!(
        client.status().await.unwrap().is_none(),
        "nothing listens any more"
    );
}

#[tokio::test]
async fn a_taken_port_is_told_with_its_remedy() {
    let daemon = daemon().await;
    let again = ControlServer::bind(&daemon.settings, "t".into(), Arc::clone(&daemon.operator)).await;
    let error = again.err().unwrap().to_string();
    assert!(error.contains("control.listen"), "{error}");
    daemon.stop().await;
}

#[tokio::test]
async fn who_guesses_the_token_is_refused_for_a_while_and_an_old_token_is_not_a_guess() {
    let daemon = daemon().await;
    let ask = async |token: String| {
        let url = format!("{}/api/cloud-sync/status", daemon.base);
        let answer = daemon.http.get(url).bearer_auth(token).send().await.unwrap();
        answer.status()
    };
    for _ in 0..30 {
        assert_eq!(ask("the-old-token".into()).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(ask(daemon.token.clone()).await, StatusCode::OK);
    for guess in 1..10 {
        assert_eq!(ask(format!("guess-{guess}")).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(ask("guess-10".into()).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask(daemon.token.clone()).await, StatusCode::TOO_MANY_REQUESTS);
    daemon.stop().await;
}
