//! The receiver under attack: guessed keys, endless and bomb-like bodies, deep JSON, names that try to leave
//! their folder; and the operator API of a site.

mod floods;
mod framing;
mod json;
mod keys;
mod names;
mod operator;
mod path;
mod roads;
mod statements;
pub(crate) mod takeover;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::batches::BatchSource;
use crate::support::receiver::ReceiverProcess;
use crate::support::site::{Cloud, KEY, LIMIT};

/// A body of ten gigabytes is tried, and a fifth of one may never be in memory.
const HUGE: u64 = 10 << 30;
const MEMORY: u64 = 200 << 20;

/// A receiver's process with one declared entity, and a site that replicates into it all the while.
struct Fort {
    cloud: Cloud,
    receiver: ReceiverProcess,
    client: reqwest::Client,
    source: BatchSource,
}

impl Fort {
    async fn build(hint: &str) -> Self {
        let mut cloud = Cloud::start(hint).await;
        let receiver = ReceiverProcess::replace(&mut cloud, &[KEY]).await;
        let fort = Self {
            cloud,
            receiver,
            client: reqwest::Client::new(),
            source: BatchSource::new("attacker"),
        };
        let schema = json!({
            "entity": "rooms", "key": ["room_id"],
            "columns": [
                {"name": "room_id", "type": "bigint"}, {"name": "room_no", "type": "text"},
                {"name": "about", "type": "jsonb"}, {"name": "tags", "type": "text[]"},
            ],
        });
        assert_eq!(fort.declare("rooms", &schema).await, 200);
        fort
    }

    async fn declare(&self, path: &str, schema: &Value) -> u16 {
        let put = self.client.put(format!("{}/schema/{path}", self.cloud.url));
        let answer = put.bearer_auth(KEY).json(schema).send().await.unwrap();
        answer.status().as_u16()
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client
            .post(format!("{}/{path}", self.cloud.url))
            .bearer_auth(KEY)
    }

    /// A batch of changes: the next one of the source that attacks and is well-behaved in turn.
    fn changes(&self) -> reqwest::RequestBuilder {
        self.source.next().put(self.post("changes"))
    }

    /// Notes that the batch was taken.
    fn taken(&self) {
        self.source.taken(self.source.next());
    }

    /// One change of one room, which a well-behaved site sends.
    async fn is_serving(&self, position: i64) {
        let line = json!({"position": position, "entity": "rooms", "op": "upsert",
            "key": {"room_id": 1}, "row": {"room_id": 1, "room_no": position.to_string()}});
        let answer = tokio::time::timeout(LIMIT, self.changes().body(line.to_string()).send());
        let answer = answer.await.expect("an answer").unwrap();
        assert_eq!(answer.status(), 200);
        self.taken();
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["applied"], 1, "{answer}");
    }

    /// Sends bytes over a connection of its own, and answers what came back until its end.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.receiver.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
        let _ = read.await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// No key in the log, and no panic.
    fn is_discreet(&self, secrets: &[&str]) {
        let log = self.receiver.log();
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} in\n{log}");
        }
        assert!(!log.contains("panicked"), "{log}");
    }
}
