//! The receiver, over real HTTP on a real PostgreSQL.

mod baseline;
mod load;
mod measure;
mod order;
mod refusals;
mod schema;
mod shares;
mod sites;
mod turns;
mod tus;
mod uploads;
mod values;
mod ways;

use std::collections::BTreeMap;
use std::sync::Once;

use cloud_sync::receiver::{BODY_LIMIT, Receiver, ReceiverSettings};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;

use crate::support::batches::{BatchName, BatchSource};
use crate::support::postgres::Server;

/// A running receiver with two sites, and a connection to its database.
struct Cloud {
    client: Client,
    root: String,
    database_url: String,
    pool: PgPool,
    /// The source that sends, unless another one is named.
    source: BatchSource,
    files: tempfile::TempDir,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<cloud_sync::error::Result<()>>,
}

fn settings(database_url: &str, files: &std::path::Path) -> ReceiverSettings {
    let keys = [
        ("college", ["new-key", "old-key"]),
        ("annex", ["annex-key", "annex-old"]),
    ];
    ReceiverSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        database_url: database_url.to_owned(),
        files: files.to_owned(),
        public_url: None,
        url_valid: None,
        keys: keys
            .into_iter()
            .map(|(site, keys)| (site.to_owned(), keys.map(str::to_owned).to_vec()))
            .collect::<BTreeMap<_, _>>(),
        history: true,
        body_limit: BODY_LIMIT,
        capabilities: None,
    }
}

impl Cloud {
    async fn start(hint: &str) -> Self {
        Self::start_with(hint, |_| {}).await
    }

    async fn start_with(hint: &str, change: impl FnOnce(&mut ReceiverSettings)) -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let database_url = Server::get().database(hint).await;
        let files = tempfile::tempdir().unwrap();
        let mut settings = settings(&database_url, files.path());
        change(&mut settings);
        let database_url = settings.database_url.clone();
        let receiver = Receiver::bind(settings).await.unwrap().with_upload_limit(1 << 20);
        let root = format!("http://{}", receiver.address());
        let stop = CancellationToken::new();
        let task = tokio::spawn(receiver.serve(stop.clone()));
        Self {
            client: Client::new(),
            root,
            pool: PgPool::connect(&database_url).await.unwrap(),
            database_url,
            source: BatchSource::new("source-1"),
            files,
            stop,
            task,
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("{}/api/{path}", self.root))
            .bearer_auth("new-key")
    }

    async fn declare(&self, path: &str, schema: Value) -> Response {
        self.request(Method::PUT, &format!("schema/{path}"))
            .json(&schema)
            .send()
            .await
            .unwrap()
    }

    /// Declares rooms: room_id bigint, room_no text.
    async fn rooms(&self) {
        let schema = json!({
            "entity": "rooms",
            "key": ["room_id"],
            "columns": [{"name": "room_id", "type": "bigint"}, {"name": "room_no", "type": "text"}],
            "window": null,
        });
        assert_eq!(self.declare("rooms", schema).await.status(), StatusCode::OK);
    }

    /// A request with the next batch of the source, in this epoch. The caller records whether it was applied.
    fn changes(&self, epoch: i64, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.batch(&self.source.next_in(epoch), body)
    }

    /// A request with this batch.
    fn batch(&self, name: &BatchName, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        name.put(self.request(Method::POST, "changes").body(body))
    }

    /// Sends this batch, whether it is applied or not.
    async fn post_batch(&self, name: &BatchName, changes: &[Value]) -> (StatusCode, Value) {
        let response = self.batch(name, lines(changes)).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// Sends these as the source's next batch, which is applied.
    async fn send(&self, epoch: i64, changes: &[Value]) -> Value {
        self.send_text(epoch, lines(changes)).await
    }

    async fn send_text(&self, epoch: i64, body: String) -> Value {
        self.take(&self.source, self.source.next_in(epoch), body).await
    }

    /// Sends these as another source's next batch, which is applied.
    async fn send_as(&self, source: &BatchSource, changes: &[Value]) -> Value {
        self.take(source, source.next(), lines(changes)).await
    }

    async fn take(&self, source: &BatchSource, name: BatchName, body: String) -> Value {
        let response = self.batch(&name, body).send().await.unwrap();
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        source.taken(name);
        answer
    }

    async fn scalar<T>(&self, sql: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// The rooms of the site college: id, number, and epoch, term and batch, by id.
    async fn standing(&self) -> String {
        self.scalar(
            "select coalesce(string_agg(format('%s=%s@%s.%s.%s', room_id, room_no, _epoch, _version >> 40, \
             _version & ((1::bigint << 40) - 1)), ' ' order by room_id), '') from cloud.rooms where _site = 'college'",
        )
        .await
    }

    /// How often a row of any entity went back to an older version.
    async fn back(&self) -> i64 {
        self.count(
            "(select epoch, version, lag((epoch, version)) over (partition by site, entity, key order by id) as before \
             from cloud_meta.history) h where (epoch, version) < before",
        )
        .await
    }

    async fn count(&self, sql: &str) -> i64 {
        self.scalar(&format!("select count(*) from {sql}")).await
    }
}

fn lines(changes: &[Value]) -> String {
    changes.iter().map(|change| format!("{change}\n")).collect()
}

fn upsert(position: i64, id: i64, number: &str) -> Value {
    json!({
        "position": position, "entity": "rooms", "op": "upsert",
        "key": {"room_id": id}, "row": {"room_id": id, "room_no": number},
    })
}

fn delete(position: i64, id: i64) -> Value {
    json!({"position": position, "entity": "rooms", "op": "delete", "key": {"room_id": id}})
}

fn truncate(position: i64) -> Value {
    json!({"position": position, "entity": "rooms", "op": "truncate"})
}

fn counts(answer: &Value) -> (i64, i64, usize) {
    (
        answer["applied"].as_i64().unwrap(),
        answer["skipped"].as_i64().unwrap(),
        answer["rejected"].as_array().unwrap().len(),
    )
}
