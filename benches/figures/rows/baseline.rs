//! A cloud that has the baseline calls only and answers each after 20 ms, as one at the far end of a line
//! does.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::Outcome;
use crate::load;
use crate::progress::Progress;
use crate::servers::World;
use crate::site::{KEY, Plan, Site};
use crate::table::{Row, Samples, Target, Unit};

const ROWS: u64 = 5_000;

/// The serial loop posts so many: it takes the same time for each.
const SERIAL: usize = 500;

const ANSWER: Duration = Duration::from_millis(20);

const LIMIT: Duration = Duration::from_secs(300);

pub(crate) async fn baseline(world: &World, progress: &Progress<'_>) -> Outcome<Vec<Row>> {
    // reqwest asks for one although nothing is encrypted here. Where it fails, there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for run in progress.runs() {
        let cloud = Cloud::start().await?;
        let tables = format!("create table logs ({})", load::COLUMNS);
        let entities = load::entity("logs");
        let plan = Plan {
            cloud: Some(&cloud.url),
            ..Plan::of(&entities, &tables)
        };
        let site = Site::new(world, &plan).await?;
        site.source.batch_execute(&load::many_rows("logs", ROWS)).await?;
        world.settle().await?;
        progress.run(run, "cloud-sync");
        let start = Instant::now();
        let replicator = site.replicator()?;
        cloud.has(ROWS).await?;
        ours.push(ROWS as f64 / start.elapsed().as_secs_f64());
        replicator.end().await?;

        progress.run(run, "a serial loop");
        let sql = "select row_to_json(logs)::text from logs order by log_id limit $1";
        let rows = site.source.query(sql, &[&(SERIAL as i64)]).await?;
        let rows = rows.iter().map(|row| row.get(0)).collect();
        theirs.push(SERIAL as f64 / serial(&cloud.url, rows).await?);
        site.end().await?;
    }
    Ok(vec![
        Row::new(
            "baseline",
            "5,000 rows, 20 ms answers, rows",
            Unit::PerSecond,
            ours,
        )
        .peer("serial POST loop", theirs)
        .target(Target::RatioAtLeast(15.0))
        .note(format!(
            "from the start of `run` until the server has all. The loop keeps one connection; \
                 its rate is that of {SERIAL} rows."
        )),
    ])
}

/// The seconds of a loop that posts a row, waits for the answer, and posts the next.
async fn serial(url: &str, rows: Vec<String>) -> Outcome<f64> {
    let client = reqwest::Client::new();
    let start = Instant::now();
    for row in rows {
        let request = client.post(format!("{url}/logs")).bearer_auth(KEY);
        let answer = request
            .header("Content-Type", "application/json")
            .body(row)
            .send()
            .await?;
        answer.error_for_status()?.bytes().await?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// The server. It ends when it is dropped.
struct Cloud {
    url: String,
    keys: Keys,
    serving: JoinHandle<()>,
}

type Keys = Arc<Mutex<HashSet<u64>>>;

impl Cloud {
    async fn start() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/api", listener.local_addr()?);
        let keys = Keys::default();
        let app = Router::new()
            .route("/api/sync-status", get(status))
            .route("/api/{path}", get(list).post(store))
            .route("/api/upload/{directory}", post(async || StatusCode::NOT_FOUND))
            .with_state(Arc::clone(&keys));
        let serving = tokio::spawn(async move {
            let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                // Or its answers would wait for the client's acknowledgement.
                let _ = stream.set_nodelay(true);
            });
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, keys, serving })
    }

    /// Waits until it has so many rows.
    async fn has(&self, count: u64) -> Outcome<()> {
        let start = Instant::now();
        while (locked(&self.keys).len() as u64) < count {
            if start.elapsed() > LIMIT {
                return Err(format!("the server has {} rows only", locked(&self.keys).len()).into());
            }
            sleep(Duration::from_millis(3)).await;
        }
        Ok(())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn status() -> Json<Value> {
    sleep(ANSWER).await;
    Json(json!({"status": "ok", "message": "ready", "last_sync": null}))
}

async fn list(State(keys): State<Keys>, Path(_path): Path<String>) -> Json<Value> {
    sleep(ANSWER).await;
    let rows = locked(&keys).iter().map(|key| json!({"log_id": key})).collect();
    Json(Value::Array(rows))
}

async fn store(State(keys): State<Keys>, Json(row): Json<Value>) -> StatusCode {
    sleep(ANSWER).await;
    match row["log_id"].as_u64() {
        Some(key) => {
            locked(&keys).insert(key);
            StatusCode::CREATED
        }
        None => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

fn locked(keys: &Keys) -> std::sync::MutexGuard<'_, HashSet<u64>> {
    keys.lock().unwrap_or_else(PoisonError::into_inner)
}
