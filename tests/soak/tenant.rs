//! Another tenant of the receiver: it sends batches of its own without end, and takes all else that it can.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::batches::BatchSource;
use crate::support::site::{Cloud, connect};

/// Its name and its key.
pub(super) const SITE: &str = "neighbour";
pub(super) const KEY: &str = "neighbours-key";

/// The rows that it has.
const ROWS: i64 = 200;

/// The tenant, until it is stopped.
pub(super) struct Tenant {
    stop: CancellationToken,
    task: JoinHandle<i64>,
}

impl Tenant {
    pub(super) fn start(address: std::net::SocketAddr, seed: u64) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(sends(address, seed, stop.clone()));
        Self { stop, task }
    }

    /// Stops it, and says what the cloud lacks of what was answered.
    pub(super) async fn end(self, cloud: &Cloud) -> Vec<String> {
        self.stop.cancel();
        let answered = self.task.await.expect("the tenant ends");
        let there = connect(&cloud.database_url).await;
        let sql = format!(
            "select count(*) from cloud.neighbours where _site = '{SITE}' and value not between $1 and $1 + 1"
        );
        let wrong: i64 = match there.query_one(&sql, &[&answered]).await {
            Ok(row) => row.get(0),
            Err(_) if answered == 0 => 0,
            Err(error) => return vec![format!("the neighbour's rows cannot be read: {error}")],
        };
        println!("the neighbour: {answered} batches");
        if wrong == 0 {
            return Vec::new();
        }
        vec![format!(
            "{wrong} rows of the neighbour are not those of its batch {answered}"
        )]
    }
}

/// Sends batch after batch, each of which sets all rows to its number; returns the last that was answered.
async fn sends(address: std::net::SocketAddr, seed: u64, stop: CancellationToken) -> i64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let client = Client::new();
    let request = |method, path: &str| -> RequestBuilder {
        client
            .request(method, format!("http://{address}/api/{path}"))
            .bearer_auth(KEY)
            .timeout(Duration::from_secs(30))
    };
    let source = BatchSource::new("neighbour-db");
    let schema = json!({"entity": "neighbours", "key": ["id"], "window": null,
        "columns": [{"name": "id", "type": "bigint"}, {"name": "value", "type": "bigint"}]});
    let mut declared = false;
    let mut held = Vec::new();
    while !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(rng.random_range(1..50))).await;
        if rng.random_bool(0.02) {
            held = greedy(address, rng.random_range(1..24)).await;
        } else if rng.random_bool(0.05) {
            held.clear();
        }
        if !declared {
            let put = request(Method::PUT, "schema/neighbours")
                .json(&schema)
                .send()
                .await;
            declared = put.is_ok_and(|answer| answer.status().is_success());
            continue;
        }
        let name = source.next();
        let lines: String = (1..=ROWS)
            .map(|id| {
                let row = json!({"position": name.batch, "entity": "neighbours", "op": "upsert",
                    "key": {"id": id}, "row": {"id": id, "value": name.batch}});
                format!("{row}\n")
            })
            .collect();
        let sent = name
            .put(request(Method::POST, "changes").body(lines))
            .send()
            .await;
        // Without an answer it goes again, as it was.
        if sent.is_ok_and(|answer| answer.status().is_success()) {
            source.taken(name);
        }
    }
    source.newest().batch
}

/// Lists whose answer nobody reads, and bodies that do not end.
async fn greedy(address: std::net::SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for nth in 0..count {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            continue;
        };
        let (line, rest) = match nth % 2 {
            0 => ("GET /api/neighbours", String::new()),
            _ => (
                "POST /api/bulk/neighbours",
                "Content-Length: 60000000\r\n".to_owned(),
            ),
        };
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{rest}\r\n");
        let body = vec![b' '; nth % 2 * (1 << 20)];
        if stream.write_all(head.as_bytes()).await.is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&body)).await;
            held.push(stream);
        }
    }
    held
}
