//! The answers that the receiver gives: to the requests that the client writes, and to wrong ones.

use std::collections::BTreeMap;

use cloud_sync::receiver::{BODY_LIMIT, Receiver, ReceiverSettings};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Golden, Message};
use crate::support::batches::BatchName;
use crate::support::postgres::Server;

/// A receiver with one site.
struct Running {
    client: Client,
    root: String,
    golden: Golden,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<cloud_sync::error::Result<()>>,
    _files: tempfile::TempDir,
}

impl Running {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let files = tempfile::tempdir().unwrap();
        let settings = ReceiverSettings {
            listen: "127.0.0.1:0".parse().unwrap(),
            database_url: Server::get().database("contract").await,
            files: files.path().to_owned(),
            public_url: Some("https://cloud.example".to_owned()),
            url_valid: None,
            keys: BTreeMap::from([("college".to_owned(), vec!["college-key".to_owned()])]),
            history: false,
            body_limit: BODY_LIMIT,
            capabilities: None,
        };
        let receiver = Receiver::bind(settings).await.unwrap();
        let root = format!("http://{}", receiver.address());
        let stop = CancellationToken::new();
        let task = tokio::spawn(receiver.serve(stop.clone()));
        Self {
            client: Client::builder().no_proxy().build().unwrap(),
            root,
            golden: Golden::new("answers"),
            stop,
            task,
            _files: files,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}/api/{path}", self.root))
            .bearer_auth("college-key")
    }

    /// A request as the client writes it.
    fn golden_request(&self, name: &str) -> RequestBuilder {
        let message = Message::read("requests", name);
        let (method, path) = message.first_line.split_once(' ').unwrap();
        let mut request = self
            .client
            .request(method.parse().unwrap(), format!("{}{path}", self.root));
        for (name, value) in &message.headers {
            if !matches!(name.as_str(), "host" | "content-length" | "user-agent") {
                request = request.header(name, value);
            }
        }
        request.body(message.body)
    }

    /// A batch of this source with these lines.
    fn batch(&self, name: &BatchName, lines: &str) -> RequestBuilder {
        name.put(self.request(Method::POST, "changes").body(lines.to_owned()))
    }

    /// Compares the answer with its file.
    async fn compare(&mut self, name: &str, request: RequestBuilder) {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.unwrap();
        let fields = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .filter(|(name, _)| *name != "date");
        let mut message = Message::new(status.as_u16().to_string(), fields, &body);
        if let Some(timing) = message.header("server-timing") {
            let (metric, duration) = timing.split_once('=').unwrap();
            duration.parse::<f64>().unwrap();
            let masked = format!("{metric}=MILLISECONDS");
            message.mask_header("server-timing", &masked);
        }
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        for (member, word) in [("receiver", "RECEIVER"), ("last_sync", "TIME")] {
            if let Some(text) = json[member].as_str() {
                message.mask(text, word);
                message.mask_header("content-length", "LENGTH");
            }
        }
        self.golden.compare(name, &message);
    }
}

#[tokio::test]
async fn the_receiver_gives_the_contracts_answers() {
    let mut receiver = Running::start().await;
    compare_schemas(&mut receiver).await;
    compare_changes(&mut receiver).await;
    compare_rows(&mut receiver).await;
    compare_files(&mut receiver).await;
    compare_the_rest(&mut receiver).await;
    receiver.golden.finish();
    receiver.stop.cancel();
    receiver.task.await.unwrap().unwrap();
}

async fn compare_schemas(receiver: &mut Running) {
    receiver
        .compare("sync-status-new", receiver.golden_request("sync-status"))
        .await;
    receiver
        .compare("schema", receiver.golden_request("schema"))
        .await;
    let body = Message::read("requests", "schema").body;
    let put = |path: &str, source: &str, body: &str| {
        receiver
            .request(Method::PUT, path)
            .header("x-source-id", source)
            .body(body.to_owned())
    };
    let other_source = put("schema/rooms", "other-db", &body);
    let reserved_path = put("schema/changes", "college-db", &body);
    let reserved_column = put("schema/rooms", "college-db", &body.replace("room_no", "_version"));
    let other_key = put(
        "schema/rooms",
        "college-db",
        &body.replace("\"key\":[\"room_id\"]", "\"key\":[\"room_no\"]"),
    );
    let not_a_schema = put("schema/rooms", "college-db", "{\"entity\":\"rooms\"}");
    for (name, request) in [
        ("schema-of-another-source", other_source),
        ("schema-with-a-reserved-path", reserved_path),
        ("schema-with-a-reserved-column", reserved_column),
        ("schema-with-another-key", other_key),
        ("schema-that-is-none", not_a_schema),
    ] {
        receiver.compare(name, request).await;
    }
}

async fn compare_changes(receiver: &mut Running) {
    // The source begins with the term before the one of the client's requests.
    let before = BatchName {
        source: "college-db".to_owned(),
        epoch: 2,
        term: 2,
        batch: 1,
        nonce: "nonce-of-2".to_owned(),
        previous: None,
        database: Some("7/5".to_owned()),
    };
    receiver
        .compare(
            "changes-out-of-turn-of-a-new-source",
            receiver.batch(&before.next(), ""),
        )
        .await;
    receiver
        .compare("changes-heartbeat", receiver.batch(&before, ""))
        .await;
    // Seats are not declared: that change is rejected alone.
    receiver
        .compare(
            "changes-first-of-term",
            receiver.golden_request("changes-first-of-term"),
        )
        .await;
    receiver
        .compare("changes", receiver.golden_request("changes"))
        .await;
    receiver
        .compare("changes-repeated", receiver.golden_request("changes"))
        .await;

    let now = BatchName {
        term: 3,
        batch: 2,
        nonce: "nonce-of-3".to_owned(),
        ..before.clone()
    };
    let row = |id: &str, row: &str| {
        format!(
            "{{\"position\":9,\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{{\"room_id\":{id}}},\"row\":{row}}}\n"
        )
    };
    let wrong = [
        "{\"position\":1,\"entity\":\"nothing\",\"op\":\"delete\",\"key\":{\"id\":1}}\n".to_owned(),
        row("1", "{\"room_id\":1,\"colour\":\"red\"}"),
        "{\"position\":3,\"entity\":\"rooms\",\"op\":\"merge\",\"key\":{\"room_id\":1}}\n".to_owned(),
        "{\"position\":4,\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{\"room_id\":1}}\n".to_owned(),
        "{\"position\":5,\"entity\":\"rooms\",\"op\":\"delete\"}\n".to_owned(),
        row("2", "{\"room_id\":3}"),
        row("4", "[4]"),
        row("5", "{\"room_id\":5,\"seats\":\"many\"}"),
        row(
            "6",
            "{\"room_id\":6,\"room_no\":\"good\",\"opened_at\":\"2000-01-01T00:00:00Z\"}",
        ),
    ];
    for (name, batch, lines) in [
        ("changes-rejected", now.next(), wrong.concat()),
        ("changes-out-of-turn", now.after(20), String::new()),
        (
            "changes-stale-epoch",
            BatchName {
                epoch: 1,
                ..now.clone()
            },
            String::new(),
        ),
        ("changes-stale-term", before.next(), String::new()),
        (
            "changes-unknown-term",
            BatchName {
                nonce: "guessed".to_owned(),
                ..now.after(2)
            },
            String::new(),
        ),
        ("changes-different-batch", now.next(), "\n".to_owned()),
        (
            "changes-with-a-line-that-is-none",
            now.after(2),
            "{}\n".to_owned(),
        ),
        (
            "changes-with-a-term-that-is-none",
            BatchName {
                term: 0,
                ..now.after(2)
            },
            String::new(),
        ),
    ] {
        receiver.compare(name, receiver.batch(&batch, &lines)).await;
    }
    receiver
        .compare(
            "changes-without-headers",
            receiver.request(Method::POST, "changes"),
        )
        .await;
    receiver
        .compare("sync-status", receiver.golden_request("sync-status"))
        .await;
}

async fn compare_rows(receiver: &mut Running) {
    for name in ["row", "bulk", "list", "list-of-days"] {
        // The rows of the client's requests are of the last days for ever; a rejected batch's good row is
        // old.
        let request = receiver.golden_request(name);
        receiver.compare(name, request).await;
    }
    let post = |path: &str, body: &str| receiver.request(Method::POST, path).body(body.to_owned());
    let refused = [
        ("list-of-keys", receiver.request(Method::GET, "rooms?keys=1")),
        (
            "list-of-wrong-days",
            receiver.request(Method::GET, "rooms?days=-1"),
        ),
        ("list-of-an-unknown-path", receiver.request(Method::GET, "halls")),
        ("row-refused", post("rooms", "{\"room_id\":1,\"colour\":\"red\"}")),
        (
            "row-that-does-not-fit",
            post("rooms", "{\"room_id\":1,\"seats\":\"many\"}"),
        ),
        ("row-that-is-none", post("rooms", "{")),
        (
            "bulk-refused",
            post(
                "bulk/rooms",
                "{\"records\":[{\"room_id\":1},{\"room_no\":\"x\"}]}",
            ),
        ),
        ("bulk-that-is-none", post("bulk/rooms", "[]")),
    ];
    for (name, request) in refused {
        receiver.compare(name, request).await;
    }
    receiver
        .compare("delete-of-no-row", receiver.golden_request("delete"))
        .await;
    receiver
        .compare("delete", receiver.request(Method::DELETE, "rooms/1"))
        .await;
}

async fn compare_files(receiver: &mut Running) {
    let upload = |directory: &str, part: &'static str| {
        let file = reqwest::multipart::Part::text("a slip").file_name("Slip 1.jpg");
        receiver
            .request(Method::POST, &format!("upload/{directory}"))
            .multipart(reqwest::multipart::Form::new().part(part, file))
    };
    let requests = [
        ("upload", upload("leave_slips", "file")),
        ("upload-without-a-file", upload("leave_slips", "slip")),
        ("upload-to-a-wrong-directory", upload("leave.slips", "file")),
    ];
    for (name, request) in requests {
        receiver.compare(name, request).await;
    }
}

async fn compare_the_rest(receiver: &mut Running) {
    let status = format!("{}/api/sync-status", receiver.root);
    let requests = [
        ("without-a-key", receiver.client.get(status)),
        ("no-such-path", receiver.request(Method::GET, "rooms/1/2/3")),
        ("no-such-method", receiver.request(Method::PATCH, "sync-status")),
    ];
    for (name, request) in requests {
        receiver.compare(name, request).await;
    }
}
