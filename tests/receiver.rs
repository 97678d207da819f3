//! The receiver, over real HTTP on a real PostgreSQL.

use std::collections::BTreeMap;
use std::sync::Once;

use cloud_sync::receiver::{BODY_LIMIT, Receiver, ReceiverSettings};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;

use crate::support::postgres::Server;

/// A running receiver with two sites, and a look into its database.
struct Cloud {
    client: Client,
    root: String,
    database_url: String,
    pool: PgPool,
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
        let receiver = Receiver::bind(settings).await.unwrap().with_upload_limit(1 << 20);
        let root = format!("http://{}", receiver.address());
        let stop = CancellationToken::new();
        let task = tokio::spawn(receiver.serve(stop.clone()));
        Self {
            client: Client::new(),
            root,
            pool: PgPool::connect(&database_url).await.unwrap(),
            database_url,
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

    fn changes(&self, epoch: i64, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.request(Method::POST, "changes")
            .header("X-Source-Id", "source-1")
            .header("X-Epoch", epoch)
            .body(body)
    }

    async fn send(&self, epoch: i64, changes: &[Value]) -> Value {
        let body: String = changes.iter().map(|change| format!("{change}\n")).collect();
        self.send_text(epoch, body).await
    }

    async fn send_text(&self, epoch: i64, body: String) -> Value {
        let response = self.changes(epoch, body).send().await.unwrap();
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
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

    /// The rooms of the site college: id, number and position, by id.
    async fn standing(&self) -> String {
        self.scalar(
            "select coalesce(string_agg(format('%s=%s@%s.%s', room_id, room_no, _epoch, _position), ' ' \
             order by room_id), '') from cloud.rooms where _site = 'college'",
        )
        .await
    }

    async fn count(&self, sql: &str) -> i64 {
        self.scalar(&format!("select count(*) from {sql}")).await
    }
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

#[tokio::test]
async fn an_older_position_never_overwrites_a_newer_one() {
    let cloud = Cloud::start("guard").await;
    cloud.rooms().await;
    let answer = cloud.send(1, &[upsert(5, 1, "five"), upsert(6, 2, "six")]).await;
    assert_eq!(counts(&answer), (2, 0, 0));
    // A duplicate, an older and a newer one.
    let answer = cloud
        .send(
            1,
            &[upsert(5, 1, "five"), upsert(4, 2, "four"), upsert(7, 3, "seven")],
        )
        .await;
    assert_eq!(counts(&answer), (1, 2, 0));
    assert_eq!(cloud.standing().await, "1=five@1.5 2=six@1.6 3=seven@1.7");
    // Out of order within a request, and the same key written in another way.
    let text = "{\"position\":12,\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{\"room_id\" : 1},\
                \"row\":{\"room_no\":\"twelve\",\r \"room_id\":1}}\n\
                {\"position\":11,\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{\"room_id\":1},\
                \"row\":{\"room_id\":1,\"room_no\":\"eleven\"}}";
    assert_eq!(counts(&cloud.send_text(1, text.to_owned()).await), (1, 1, 0));
    assert_eq!(cloud.standing().await, "1=twelve@1.12 2=six@1.6 3=seven@1.7");
    // A new epoch starts again at low positions, and an old epoch never comes back.
    assert_eq!(counts(&cloud.send(2, &[upsert(1, 1, "new")]).await), (1, 0, 0));
    assert_eq!(counts(&cloud.send(1, &[upsert(99, 1, "old")]).await), (0, 1, 0));
    assert!(cloud.standing().await.starts_with("1=new@2.1 "));
    let back = cloud
        .count(
            "(select epoch, position, lag((epoch, position)) over (partition by key order by id) as before \
             from cloud_meta.history) h where (epoch, position) <= before",
        )
        .await;
    assert_eq!(back, 0, "no row ever went back");
    cloud.end().await;
}

#[tokio::test]
async fn a_delete_leaves_a_tombstone_that_only_a_newer_change_lifts() {
    let cloud = Cloud::start("tombstone").await;
    cloud.rooms().await;
    cloud.send(1, &[upsert(1, 1, "a"), upsert(2, 2, "b")]).await;
    assert_eq!(
        counts(&cloud.send(1, &[delete(5, 1), delete(6, 9)]).await),
        (2, 0, 0)
    );
    assert_eq!(cloud.standing().await, "2=b@1.2");
    // Older upserts, a backfilled row and a duplicate of the delete.
    let answer = cloud
        .send(1, &[upsert(4, 1, "back"), upsert(3, 9, "back"), delete(5, 1)])
        .await;
    assert_eq!(counts(&answer), (0, 3, 0));
    assert_eq!(
        counts(&cloud.send(1, &[upsert(0, 1, "backfill")]).await),
        (0, 1, 0)
    );
    assert_eq!(cloud.standing().await, "2=b@1.2");
    // A delete that is older than the row.
    cloud.send(1, &[upsert(8, 2, "newer")]).await;
    assert_eq!(counts(&cloud.send(1, &[delete(7, 2)]).await), (0, 1, 0));
    // A newer upsert lifts the tombstone.
    assert_eq!(counts(&cloud.send(1, &[upsert(10, 1, "again")]).await), (1, 0, 0));
    assert_eq!(cloud.standing().await, "1=again@1.10 2=newer@1.8");
    assert_eq!(
        cloud.count("cloud_meta.tombstones where key = '[\"1\"]'").await,
        0
    );
    assert_eq!(cloud.count("cloud_meta.tombstones").await, 1);
    // Delete and upsert of one row in one request, either way round.
    cloud.send(1, &[delete(20, 1), upsert(21, 1, "c")]).await;
    cloud.send(1, &[upsert(30, 2, "d"), delete(31, 2)]).await;
    assert_eq!(cloud.standing().await, "1=c@1.21");
    cloud.end().await;
}

#[tokio::test]
async fn a_truncate_removes_what_is_older_and_keeps_it_away() {
    let cloud = Cloud::start("truncate").await;
    cloud.rooms().await;
    cloud
        .send(
            1,
            &[
                upsert(1, 1, "a"),
                upsert(2, 2, "b"),
                delete(3, 3),
                upsert(9, 4, "d"),
            ],
        )
        .await;
    let answer = cloud
        .send(1, &[upsert(4, 5, "gone"), truncate(5), upsert(6, 1, "after")])
        .await;
    assert_eq!(counts(&answer), (2, 1, 0));
    assert_eq!(cloud.standing().await, "1=after@1.6 4=d@1.9");
    assert_eq!(cloud.count("cloud_meta.tombstones").await, 0);
    let answer = cloud
        .send(
            1,
            &[
                upsert(2, 2, "b"),
                upsert(0, 7, "backfill"),
                delete(4, 1),
                truncate(5),
            ],
        )
        .await;
    assert_eq!(counts(&answer), (0, 4, 0));
    assert_eq!(counts(&cloud.send(1, &[upsert(7, 2, "later")]).await), (1, 0, 0));
    assert_eq!(cloud.standing().await, "1=after@1.6 2=later@1.7 4=d@1.9");
    // A backfill of a new epoch is newer than everything of the old one.
    assert_eq!(
        counts(&cloud.send(2, &[upsert(0, 7, "backfill")]).await),
        (1, 0, 0)
    );
    cloud.end().await;
}

#[tokio::test]
async fn backfilled_rows_fill_gaps_and_lose_against_changes() {
    let cloud = Cloud::start("backfill").await;
    cloud.rooms().await;
    cloud.send(1, &[upsert(1, 1, "change")]).await;
    let answer = cloud
        .send(
            1,
            &[
                upsert(0, 1, "backfill"),
                upsert(0, 2, "first"),
                upsert(0, 2, "second"),
            ],
        )
        .await;
    assert_eq!(counts(&answer), (1, 2, 0));
    assert_eq!(cloud.standing().await, "1=change@1.1 2=first@1.0");
    cloud.send(1, &[upsert(2, 2, "change")]).await;
    assert_eq!(cloud.standing().await, "1=change@1.1 2=change@1.2");
    cloud.end().await;
}

#[tokio::test]
async fn a_bad_row_among_many_is_rejected_alone() {
    let cloud = Cloud::start("rejected").await;
    cloud.rooms().await;
    let mut changes: Vec<Value> = (1..=1000).map(|id| upsert(id, id, "ok")).collect();
    changes[499] = json!({
        "position": 500, "entity": "rooms", "op": "upsert",
        "key": {"room_id": "sixty"}, "row": {"room_id": "sixty", "room_no": "secret"},
    });
    changes[700] = json!({
        "position": 701, "entity": "rooms", "op": "upsert",
        "key": {"room_id": 701}, "row": {"room_id": 701, "room_no": "nul \u{0}"},
    });
    let answer = cloud.send(1, &changes).await;
    assert_eq!(counts(&answer), (998, 0, 2));
    let rejected = &answer["rejected"];
    assert_eq!(rejected[0]["position"], 500);
    assert_eq!(rejected[0]["line"], 500);
    assert_eq!(rejected[0]["code"], "22P02");
    assert!(
        rejected[0]["error"].as_str().unwrap().contains("room_id"),
        "{rejected}"
    );
    assert_eq!(rejected[1]["code"], "22021");
    assert!(!rejected.to_string().contains("secret") && !rejected.to_string().contains("sixty"));
    assert_eq!(cloud.count("cloud.rooms").await, 998);
    // What is wrong with the change itself.
    let odd = [
        json!({"position": 2000, "entity": "nothing", "op": "upsert", "key": {"id": 1}, "row": {"id": 1}}),
        json!({"position": 2001, "entity": "rooms", "op": "merge", "key": {"room_id": 1}}),
        json!({"position": 2002, "entity": "rooms", "op": "upsert", "key": {"room_id": 1}}),
        json!({"position": 2003, "entity": "rooms", "op": "upsert", "row": {"room_id": 1}}),
        json!({"position": 2004, "entity": "rooms", "op": "upsert", "key": {"room_id": 2}, "row": {"room_no": "x"}}),
        json!({"position": 2005, "entity": "rooms", "op": "upsert", "key": {"room_id": 3}, "row": {"room_id": 4}}),
        json!({"position": 2006, "entity": "rooms", "op": "upsert", "key": {"room_id": 5},
               "row": {"room_id": 5, "colour": "red"}}),
        json!({"position": 2007, "entity": "rooms", "op": "delete", "key": {"room_id": null}}),
        upsert(2008, 6, "good"),
    ];
    let answer = cloud.send(1, &odd).await;
    assert_eq!(counts(&answer), (1, 0, 8));
    let codes: Vec<&str> = answer["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rejected| rejected["code"].as_str().unwrap())
        .collect();
    assert_eq!(
        codes,
        [
            "unknown-entity",
            "unknown-op",
            "row-missing",
            "key-missing",
            "key-missing",
            "key-mismatch",
            "unknown-column",
            "key-missing"
        ]
    );
    // A rejected change does not take along what it had superseded.
    let bad = json!({"position": 3001, "entity": "rooms", "op": "upsert", "key": {"room_id": 7},
                     "row": {"room_id": 7, "room_no": "\u{0}"}});
    let answer = cloud
        .send(1, &[upsert(2999, 7, "older"), upsert(3000, 7, "good"), bad])
        .await;
    assert_eq!(counts(&answer), (1, 1, 1));
    assert_eq!(
        cloud
            .count("cloud.rooms where room_id = 7 and room_no = 'good'")
            .await,
        1
    );
    cloud.end().await;
}

#[tokio::test]
async fn schemas_are_made_extended_and_widened_but_not_broken() {
    let cloud = Cloud::start("schema").await;
    cloud.rooms().await;
    cloud.send(1, &[upsert(1, 1, "a")]).await;
    let schema = |key: &str, columns: &[(&str, &str)]| {
        let columns: Vec<Value> = columns
            .iter()
            .map(|(name, of)| json!({"name": name, "type": of}))
            .collect();
        json!({"entity": "rooms", "key": [key], "columns": columns})
    };
    // A new column; one is left out and stays.
    let wider = schema(
        "room_id",
        &[
            ("room_id", "bigint"),
            ("floor", "integer"),
            ("mood", "my_enum"),
            ("at", "timestamp(3) with time zone"),
        ],
    );
    assert_eq!(cloud.declare("rooms", wider).await.status(), StatusCode::OK);
    let row = json!({"position": 2, "entity": "rooms", "op": "upsert", "key": {"room_id": 2},
                     "row": {"room_id": 2, "floor": 3, "mood": "happy", "at": "2026-01-02T03:04:05.678+08:00"}});
    assert_eq!(counts(&cloud.send(1, &[row]).await), (1, 0, 0));
    let stored: String = cloud
        .scalar("select concat_ws(' ', floor, mood, at at time zone 'UTC', room_no is null) from cloud.rooms where room_id = 2")
        .await;
    assert_eq!(stored, "3 happy 2026-01-01 19:04:05.678 t");
    // Widening keeps the rows; a narrower declaration changes nothing.
    for (of, now) in [
        ("bigint", "bigint"),
        ("smallint", "bigint"),
        ("numeric(8,6)", "numeric"),
        ("text", "text"),
    ] {
        let wider = schema("room_id", &[("room_id", "bigint"), ("floor", of)]);
        assert_eq!(
            cloud.declare("rooms", wider).await.status(),
            StatusCode::OK,
            "{of}"
        );
        let have: String = cloud
            .scalar("select data_type from information_schema.columns where table_name = 'rooms' and column_name = 'floor'")
            .await;
        assert_eq!(have, now);
    }
    assert_eq!(cloud.count("cloud.rooms where floor = '3'").await, 1);
    // What cannot be.
    let broken = [
        (
            StatusCode::CONFLICT,
            schema("room_id", &[("room_id", "bigint"), ("at", "boolean")]),
        ),
        (StatusCode::CONFLICT, schema("room_no", &[("room_no", "text")])),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("room_id", &[("room_id", "bigint"), ("_position_x", "text")]),
        ),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("missing", &[("room_id", "bigint")]),
        ),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            schema("room_id", &[("room_id", "bigint"), (&"x".repeat(64), "text")]),
        ),
        (StatusCode::BAD_REQUEST, json!({"entity": "rooms"})),
    ];
    for (status, schema) in broken {
        let response = cloud.declare("rooms", schema.clone()).await;
        assert_eq!(response.status(), status, "{schema}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["success"], false);
    }
    // The path of another entity.
    let other = json!({"entity": "halls", "key": ["id"], "columns": [{"name": "id", "type": "bigint"}]});
    assert_eq!(cloud.declare("rooms", other).await.status(), StatusCode::CONFLICT);
    cloud.end().await;
}

#[tokio::test]
async fn values_arrive_exactly() {
    let cloud = Cloud::start("values").await;
    let columns = [
        ("id", "bigint"),
        ("photo", "bytea"),
        ("exact", "numeric"),
        ("real", "double precision"),
        ("tags", "text[]"),
        ("grid", "bigint[]"),
        ("doc", "jsonb"),
        ("raw", "json"),
        ("at", "timestamp with time zone"),
        ("day", "date"),
        ("clock", "time without time zone"),
        ("ok", "boolean"),
        ("ref", "uuid"),
    ];
    let columns: Vec<Value> = columns
        .iter()
        .map(|(name, of)| json!({"name": name, "type": of}))
        .collect();
    let schema = json!({"entity": "values", "key": ["id"], "columns": columns});
    assert_eq!(cloud.declare("values", schema).await.status(), StatusCode::OK);
    let rows = [
        r#"{"id":9223372036854775807,"photo":"AAECgP8=\n","exact":12345678901234567890.123456789000,"real":0.1,
            "tags":["a,b","\"q\"",null],"grid":[[1,2],[3,4]],"doc":{"a":[1.50,"x"]},"raw":{"b":1,  "a":2},
            "at":"2026-03-04T05:06:07.123456+05:45","day":"2024-02-29","clock":"23:59:59.5","ok":true,
            "ref":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}"#,
        r#"{"id":2,"photo":null,"exact":"NaN","real":"-Infinity","tags":[],"grid":null,"doc":"text","raw":[1],
            "at":"infinity","day":"0044-03-15 BC","clock":"24:00:00","ok":false,"ref":null}"#,
    ];
    let body: String = rows
        .iter()
        .enumerate()
        .map(|(nth, row)| {
            let row = row.replace('\n', " ").replace("= \"", "=\\n\"");
            let id = if nth == 0 { "9223372036854775807" } else { "2" };
            format!("{{\"position\":{},\"entity\":\"values\",\"op\":\"upsert\",\"key\":{{\"id\":{id}}},\"row\":{row}}}\n", nth + 1)
        })
        .collect();
    let answer = cloud.send_text(1, body).await;
    assert_eq!(counts(&answer), (2, 0, 0), "{answer}");
    let first: String = cloud
        .scalar(
            "select concat_ws('|', photo, exact, \"real\", tags, grid, doc, raw, at at time zone 'UTC', day, clock, ok, ref) \
             from cloud.values where id = 9223372036854775807",
        )
        .await;
    assert_eq!(
        first,
        "\\x00010280ff|12345678901234567890.123456789000|0.1|{\"a,b\",\"\\\"q\\\"\",NULL}|{{1,2},{3,4}}|\
         {\"a\": [1.50, \"x\"]}|{\"b\":1,  \"a\":2}|2026-03-03 23:21:07.123456|2024-02-29|23:59:59.5|t|\
         a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    );
    let second: String = cloud
        .scalar(
            "select concat_ws('|', photo, exact, \"real\", tags, grid, doc, raw, at, day, clock, ok, ref) \
             from cloud.values where id = 2",
        )
        .await;
    assert_eq!(
        second,
        "NaN|-Infinity|{}|\"text\"|[1]|infinity|0044-03-15 BC|24:00:00|f"
    );
    // And out again.
    let list: Vec<Value> = cloud
        .request(Method::GET, "values")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let first = list.iter().find(|row| row["id"] != 2).unwrap();
    assert_eq!(first["photo"], "AAECgP8=");
    assert_eq!(first["at"], "2026-03-03T23:21:07.123456+00:00");
    assert_eq!(first["id"].as_i64(), Some(i64::MAX));
    assert!(first.get("_position").is_none());
    cloud.end().await;
}

#[tokio::test]
async fn names_and_composite_keys_of_any_kind_work() {
    let cloud = Cloud::start("names").await;
    let entity = "Roo\"ms {table}; drop";
    let schema = json!({
        "entity": entity,
        "key": ["Part \"A\"", "{key}"],
        "columns": [
            {"name": "Part \"A\"", "type": "text"}, {"name": "{key}", "type": "numeric"}, {"name": "SELECT", "type": "text"},
            {"name": "Ünï $1", "type": "integer"},
        ],
    });
    assert_eq!(cloud.declare("odd-rooms", schema).await.status(), StatusCode::OK);
    let change = |position: i64, op: &str, a: &str, number: Value, text: &str| {
        let key = json!({"{key}": number, "Part \"A\"": a});
        let row = json!({"Part \"A\"": a, "{key}": number, "SELECT": text, "Ünï $1": 7});
        let row = if op == "upsert" { row } else { Value::Null };
        json!({"position": position, "entity": entity, "op": op, "key": key, "row": row})
    };
    let answer = cloud
        .send(
            1,
            &[
                change(1, "upsert", "a,b", json!(1), "x"),
                change(2, "upsert", "a", json!(1), "y"),
                change(3, "upsert", "a", json!(2), "z"),
                change(4, "delete", "a", json!(2), ""),
            ],
        )
        .await;
    assert_eq!(counts(&answer), (3, 1, 0), "{answer}");
    // Equal numbers in another form are the same key, in one request and against a tombstone.
    let two = "{\"position\":POS,\"entity\":ENT,\"op\":\"upsert\",\"key\":{\"Part \\\"A\\\"\":\"a\",\"{key}\":NUM},\
               \"row\":{\"Part \\\"A\\\"\":\"a\",\"{key}\":NUM,\"SELECT\":\"w\"}}\n";
    let line = |position: &str, number: &str| {
        two.replace("POS", position)
            .replace("ENT", &json!(entity).to_string())
            .replace("NUM", number)
    };
    assert_eq!(counts(&cloud.send_text(1, line("3", "2.0")).await), (0, 1, 0));
    let both = line("9", "1.0") + &line("10", "1.00");
    let answer = cloud.send_text(1, both).await;
    assert_eq!(counts(&answer), (2, 0, 0), "{answer}");
    let have: String = cloud
        .scalar(
            "select string_agg(concat_ws(':', \"Part \"\"A\"\"\", \"SELECT\", _position), ' ' order by \"SELECT\") \
             from cloud.\"Roo\"\"ms {table}; drop\"",
        )
        .await;
    assert_eq!(have, "a:w:10 a,b:x:1");
    let removed = cloud
        .request(Method::DELETE, "odd-rooms/a%2Cb,1")
        .send()
        .await
        .unwrap();
    assert_eq!(removed.status(), StatusCode::OK);
    let again = cloud
        .request(Method::DELETE, "odd-rooms/a%2Cb,1")
        .send()
        .await
        .unwrap();
    assert_eq!(again.status(), StatusCode::NOT_FOUND);
    let short = cloud.request(Method::DELETE, "odd-rooms/a").send().await.unwrap();
    assert_eq!(short.status(), StatusCode::BAD_REQUEST);
    cloud.end().await;
}

#[tokio::test]
async fn keys_decide_the_site() {
    let cloud = Cloud::start("keys").await;
    cloud.rooms().await;
    let with = |key: &str| {
        cloud
            .client
            .get(format!("{}/api/sync-status", cloud.root))
            .bearer_auth(key)
            .send()
    };
    for (key, site) in [
        ("new-key", "college"),
        ("old-key", "college"),
        ("annex-key", "annex"),
    ] {
        let status: Value = with(key).await.unwrap().json().await.unwrap();
        assert_eq!(status["site"], site);
        assert_eq!(status["status"], "ok");
    }
    for key in ["", "wrong", "new-key2", "new-ke"] {
        let response = with(key).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["success"], false);
    }
    let none = cloud
        .client
        .get(format!("{}/api/rooms", cloud.root))
        .send()
        .await
        .unwrap();
    assert_eq!(none.status(), StatusCode::UNAUTHORIZED);
    // The other site has not declared rooms, then has rooms of its own.
    cloud.send(1, &[upsert(1, 1, "college")]).await;
    let annex = |method, path: &str| {
        cloud
            .client
            .request(method, format!("{}/api/{path}", cloud.root))
            .bearer_auth("annex-key")
    };
    let unknown = annex(Method::GET, "rooms").send().await.unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let schema = json!({"entity": "rooms", "key": ["room_id"],
        "columns": [{"name": "room_id", "type": "integer"}, {"name": "room_no", "type": "text"}]});
    assert_eq!(
        annex(Method::PUT, "schema/rooms")
            .json(&schema)
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );
    let posted = annex(Method::POST, "rooms")
        .json(&json!({"room_id": 1, "room_no": "annex"}))
        .send()
        .await
        .unwrap();
    assert_eq!(posted.status(), StatusCode::OK);
    let removed = annex(Method::DELETE, "rooms/1").send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::OK);
    let list: Value = annex(Method::GET, "rooms")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(list, json!([]));
    assert_eq!(cloud.standing().await, "1=college@1.1");
    // How far each source has come.
    let status: Value = with("new-key").await.unwrap().json().await.unwrap();
    assert_eq!(
        status["sources"],
        json!({"source-1": {"epoch": 1, "position": 1}})
    );
    assert_eq!(
        status["capabilities"],
        json!(["bulk", "delete", "changes", "schema"])
    );
    assert!(status["last_sync"].is_string());
    cloud.end().await;
}

#[tokio::test]
async fn baseline_requests_take_effect_as_the_newest_and_keep_the_guard() {
    let cloud = Cloud::start("baseline").await;
    let unknown = cloud
        .request(Method::POST, "rooms")
        .json(&json!({"room_id": 1}))
        .send()
        .await
        .unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert!(unknown.text().await.unwrap().contains("PUT /schema/rooms"));
    cloud.rooms().await;
    let post = async |row: Value| {
        let response = cloud
            .request(Method::POST, "rooms")
            .json(&row)
            .send()
            .await
            .unwrap();
        (response.status(), response.text().await.unwrap())
    };
    cloud
        .send(1, &[upsert(5, 1, "five"), upsert(6, 2, "six"), delete(7, 2)])
        .await;
    assert_eq!(
        post(json!({"room_id": 1, "room_no": "posted"})).await.0,
        StatusCode::OK
    );
    assert_eq!(
        post(json!({"room_id": 2, "room_no": "raised"})).await.0,
        StatusCode::OK
    );
    assert_eq!(
        post(json!({"room_id": 3, "room_no": "new"})).await.0,
        StatusCode::OK
    );
    assert_eq!(cloud.standing().await, "1=posted@1.5 2=raised@1.7 3=new@0.0");
    // What was older stays older; what is newer wins.
    let answer = cloud
        .send(
            1,
            &[
                upsert(5, 1, "five"),
                upsert(6, 2, "six"),
                upsert(0, 3, "backfill"),
            ],
        )
        .await;
    assert_eq!(counts(&answer), (1, 2, 0));
    // Only the columns that are named.
    assert_eq!(post(json!({"room_id": 1})).await.0, StatusCode::OK);
    assert!(cloud.standing().await.starts_with("1=posted@1.5 "));
    for bad in [
        json!({"room_id": "x"}),
        json!({"room_no": "x"}),
        json!({"room_id": 1, "colour": 1}),
        json!([1]),
    ] {
        let (status, text) = post(bad).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{text}");
    }
    // Delete by key: the position stays in the tombstone.
    let removed = cloud.request(Method::DELETE, "rooms/1").send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::OK);
    for none in ["rooms/1", "rooms/x", "rooms/"] {
        let removed = cloud.request(Method::DELETE, none).send().await.unwrap();
        assert_eq!(removed.status(), StatusCode::NOT_FOUND, "{none}");
    }
    assert_eq!(counts(&cloud.send(1, &[upsert(5, 1, "five")]).await), (0, 1, 0));
    assert_eq!(counts(&cloud.send(1, &[upsert(9, 1, "nine")]).await), (1, 0, 0));
    // Bulk: all or none, the last of equal keys, rows with different columns.
    let bulk = async |records: Value| {
        let response = cloud
            .request(Method::POST, "bulk/rooms")
            .json(&json!({"records": records}))
            .send()
            .await
            .unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    let (status, answer) = bulk(json!([
        {"room_id": 10, "room_no": "a"}, {"room_id": 11}, {"room_id": 10, "room_no": "b"}
    ]))
    .await;
    assert_eq!((status, &answer["upserted"]), (StatusCode::OK, &json!(3)));
    let (status, answer) =
        bulk(json!([{"room_id": 12}, {"room_id": 13}, {"room_id": 1e3}, {"room_id": 14}])).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer["error"].as_str().unwrap().contains("record 2"), "{answer}");
    assert_eq!(cloud.count("cloud.rooms where room_id >= 10").await, 2);
    assert_eq!(
        cloud
            .count("cloud.rooms where room_id = 10 and room_no = 'b'")
            .await,
        1
    );
    // Lists.
    let keys: Value = cloud
        .request(Method::GET, "rooms?keys=1")
        .header("Accept-Encoding", "zstd")
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .map(|bytes| {
            let plain = zstd::stream::decode_all(&bytes[..]).unwrap_or_else(|_| bytes.to_vec());
            serde_json::from_slice(&plain).unwrap()
        })
        .unwrap();
    assert_eq!(keys.as_array().unwrap().len(), 5);
    assert!(keys[0].get("room_no").is_none());
    cloud.end().await;
}

#[tokio::test]
async fn lists_keep_to_the_window() {
    let cloud = Cloud::start("window").await;
    let schema = json!({"entity": "logs", "key": ["id"], "window": "created_at",
        "columns": [{"name": "id", "type": "integer"}, {"name": "created_at", "type": "timestamptz"}]});
    assert_eq!(cloud.declare("logs", schema).await.status(), StatusCode::OK);
    sqlx::query(
        "insert into cloud.logs select 'college', 1, i, i, now() - make_interval(days => i) from generate_series(0, 20000) i",
    )
    .execute(&cloud.pool)
    .await
    .unwrap();
    for (query, count) in [
        ("", 20_001),
        ("?days=7", 7),
        ("?days=0", 0),
        ("?days=100&keys=1", 100),
    ] {
        let list: Vec<Value> = cloud
            .request(Method::GET, &format!("logs{query}"))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        // The row of exactly N days ago has become older meanwhile.
        assert_eq!(list.len(), count, "{query}");
    }
    let wrong = cloud.request(Method::GET, "logs?days=-1").send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    cloud.end().await;
}

#[tokio::test]
async fn broken_requests_change_nothing() {
    let cloud = Cloud::start_with("broken", |settings| settings.body_limit = 1 << 20).await;
    cloud.rooms().await;
    let good = upsert(1, 1, "a").to_string();
    for (line, body) in [
        (2, format!("{good}\n{{\"position\":2,\n")),
        (1, "[]".to_owned()),
        (
            3,
            format!("{good}\n\n{{\"position\":\"2\",\"entity\":\"rooms\",\"op\":\"delete\"}}\n{good}"),
        ),
        (2, format!("{good}\n{}", delete(-1, 1))),
    ] {
        let response = cloud.changes(1, body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let answer: Value = response.json().await.unwrap();
        assert!(
            answer["error"]
                .as_str()
                .unwrap()
                .contains(&format!("line {line}")),
            "{answer}"
        );
    }
    let utf8 = cloud.changes(1, vec![b'{', 0xff]).send().await.unwrap();
    assert_eq!(utf8.status(), StatusCode::BAD_REQUEST);
    for (source, epoch) in [("", "1"), ("s", "0"), ("s", "x")] {
        let response = cloud
            .request(Method::POST, "changes")
            .header("X-Source-Id", source)
            .header("X-Epoch", epoch)
            .body(good.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
    // Packed bodies: a good one, one that unpacks to too much, one that is none.
    let pack = |text: &[u8]| zstd::bulk::compress(text, 3).unwrap();
    let packed = |body: Vec<u8>| cloud.changes(1, body).header("Content-Encoding", "zstd").send();
    let bomb = packed(pack(&vec![b' '; 512 << 20])).await.unwrap();
    assert_eq!(bomb.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let large = cloud.changes(1, vec![b' '; 2 << 20]).send().await.unwrap();
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let none = packed(good.clone().into_bytes()).await.unwrap();
    assert_eq!(none.status(), StatusCode::BAD_REQUEST);
    let gzip = cloud
        .changes(1, "x")
        .header("Content-Encoding", "gzip")
        .send()
        .await
        .unwrap();
    assert_eq!(gzip.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(cloud.count("cloud.rooms").await, 0);
    assert_eq!(
        packed(pack(good.as_bytes())).await.unwrap().status(),
        StatusCode::OK
    );
    assert_eq!(cloud.standing().await, "1=a@1.1");
    // JSON errors everywhere.
    let lost = cloud.request(Method::GET, "a/b/c").send().await.unwrap();
    assert_eq!(lost.status(), StatusCode::NOT_FOUND);
    assert_eq!(lost.json::<Value>().await.unwrap()["success"], false);
    let method = cloud.request(Method::DELETE, "changes").send().await.unwrap();
    assert_eq!(method.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(method.json::<Value>().await.unwrap()["success"], false);
    let health = cloud
        .client
        .get(format!("{}/healthz", cloud.root))
        .send()
        .await
        .unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    cloud.end().await;
}

#[tokio::test]
async fn uploads_are_whole_safe_and_found_again() {
    let cloud = Cloud::start("upload").await;
    let upload = async |directory: &str, name: &str, content: Vec<u8>| {
        let part = reqwest::multipart::Part::bytes(content).file_name(name.to_owned());
        cloud
            .request(Method::POST, &format!("upload/{directory}"))
            .multipart(
                reqwest::multipart::Form::new()
                    .text("other", "x")
                    .part("file", part),
            )
            .send()
            .await
            .unwrap()
    };
    let content = vec![7_u8; 300_000];
    let first: Value = upload("leave_slips", "../../Slip 1.jpg", content.clone())
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(first["success"], true);
    assert_eq!(first["size"], 300_000);
    assert_eq!(
        first["hash"],
        format!("blake3:{}", blake3::hash(&content).to_hex())
    );
    let url = first["url"].as_str().unwrap();
    assert!(
        url.starts_with(&format!("{}/media/college/leave_slips/", cloud.root))
            && url.ends_with("-Slip_1.jpg")
    );
    let again: Value = upload("leave_slips", "../../Slip 1.jpg", content.clone())
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(first, again);
    let got = cloud.client.get(url).send().await.unwrap();
    assert_eq!(got.headers()["content-type"], "image/jpeg");
    assert_eq!(got.headers()["x-content-type-options"], "nosniff");
    assert_eq!(got.bytes().await.unwrap(), content);
    let part = cloud
        .client
        .get(url)
        .header("Range", "bytes=10-19")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap().len(), 10);
    let page: Value = upload("passes", "page.html", b"<script>".to_vec())
        .await
        .json()
        .await
        .unwrap();
    let page = cloud
        .client
        .get(page["url"].as_str().unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!(page.headers()["content-type"], "application/octet-stream");
    assert_eq!(page.headers()["content-disposition"], "attachment");
    // What is refused.
    for directory in ["..", "a%2Fb", "%2e%2e", "a.b"] {
        let refused = upload(directory, "x.jpg", b"x".to_vec()).await;
        assert!(refused.status().is_client_error(), "{directory}");
    }
    let large = upload("passes", "x.mp4", vec![0; (1 << 20) + 1]).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let nameless = cloud
        .request(Method::POST, "upload/passes")
        .multipart(reqwest::multipart::Form::new().text("other", "x"))
        .send()
        .await
        .unwrap();
    assert_eq!(nameless.status(), StatusCode::BAD_REQUEST);
    // An upload that breaks off leaves nothing.
    let boundary = "multipart/form-data; boundary=b";
    let half = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"h.jpg\"\r\n\r\nhalf";
    let broken = cloud
        .request(Method::POST, "upload/passes")
        .header("Content-Type", boundary)
        .body(half)
        .send()
        .await
        .unwrap();
    assert_eq!(broken.status(), StatusCode::BAD_REQUEST);
    assert_eq!(
        std::fs::read_dir(cloud.files.path().join(".incoming"))
            .unwrap()
            .count(),
        0
    );
    // Ways out of the folder.
    let slips = cloud.files.path().join("college/leave_slips");
    std::os::unix::fs::symlink("/etc/passwd", slips.join("0123456789abcdef-link.txt")).unwrap();
    std::os::unix::fs::symlink("/etc", cloud.files.path().join("college/etc")).unwrap();
    for path in [
        "college/leave_slips/0123456789abcdef-link.txt",
        "college/etc/passwd",
        "college/leave_slips/..%2f..%2f..%2fetc%2fpasswd",
        "college/leave_slips/%2e%2e",
        "college/leave_slips/",
        "college/leave_slips",
        "",
        "..%2f/x/y",
        "annex/leave_slips/0123456789abcdef-link.txt",
    ] {
        let got = cloud
            .client
            .get(format!("{}/media/{path}", cloud.root))
            .send()
            .await
            .unwrap();
        assert_eq!(got.status(), StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(cloud.count("cloud_meta.files").await, 2);
    cloud.end().await;
}

#[tokio::test]
async fn only_what_is_offered_is_there() {
    let cloud = Cloud::start_with("offered", |settings| settings.capabilities = Some(Vec::new())).await;
    cloud.rooms().await;
    let status: Value = cloud
        .request(Method::GET, "sync-status")
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(status["capabilities"], json!([]));
    let changes = cloud.changes(1, "").send().await.unwrap();
    assert_eq!(changes.status(), StatusCode::NOT_FOUND);
    let bulk = cloud
        .request(Method::POST, "bulk/rooms")
        .json(&json!({"records": []}))
        .send()
        .await
        .unwrap();
    assert_eq!(bulk.status(), StatusCode::NOT_FOUND);
    let posted = cloud
        .request(Method::POST, "rooms")
        .json(&json!({"room_id": 1}))
        .send()
        .await
        .unwrap();
    assert_eq!(posted.status(), StatusCode::OK);
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_end_at_the_highest_position() {
    let cloud = Cloud::start("at_once").await;
    cloud.rooms().await;
    let mut sent = tokio::task::JoinSet::new();
    for round in 0..40_i64 {
        let mut changes: Vec<Value> = (0..50)
            .map(|id| {
                let position = 1 + (round * 37 % 40) * 50 + id;
                if (position + id) % 7 == 3 {
                    delete(position, id)
                } else {
                    upsert(position, id, &position.to_string())
                }
            })
            .collect();
        if round % 2 == 0 {
            changes.reverse();
        }
        let body: String = changes.iter().map(|change| format!("{change}\n")).collect();
        let request = cloud.changes(1, body);
        sent.spawn(async move { request.send().await.unwrap().status() });
    }
    while let Some(status) = sent.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    let expected: String = (0..50_i64)
        .map(|id| (id, 1 + 39 * 50 + id))
        .filter(|(id, position)| (position + id) % 7 != 3)
        .map(|(id, position)| format!("{id}={position}@1.{position}"))
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(cloud.standing().await, expected);
    let back = cloud
        .count(
            "(select position, lag(position) over (partition by key order by id) as before \
             from cloud_meta.history) h where position <= before",
        )
        .await;
    assert_eq!(back, 0, "no row ever went back");
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_start_at_once_share_one_database() {
    let cloud = Cloud::start("shared").await;
    let url = Server::get().database("together").await;
    let files = tempfile::tempdir().unwrap();
    let started = (0..6).map(|_| Receiver::bind(settings(&url, files.path())));
    for receiver in futures::future::join_all(started).await {
        receiver.unwrap();
    }
    // A second receiver on the same database sees a column that came through the first.
    let other = Receiver::bind(settings(&cloud.database_url, files.path()))
        .await
        .unwrap();
    let address = other.address();
    let stop = CancellationToken::new();
    let task = tokio::spawn(other.serve(stop.clone()));
    cloud.rooms().await;
    let send = async |change: Value| {
        let answer: Value = cloud
            .client
            .post(format!("http://{address}/api/changes"))
            .bearer_auth("old-key")
            .header("X-Source-Id", "source-1")
            .header("X-Epoch", 1)
            .body(change.to_string())
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        counts(&answer)
    };
    assert_eq!(send(upsert(1, 1, "a")).await, (1, 0, 0));
    let wider = json!({"entity": "rooms", "key": ["room_id"],
        "columns": [{"name": "room_id", "type": "bigint"}, {"name": "floor", "type": "integer"}]});
    assert_eq!(cloud.declare("rooms", wider).await.status(), StatusCode::OK);
    let change = json!({"position": 2, "entity": "rooms", "op": "upsert", "key": {"room_id": 1},
                        "row": {"room_id": 1, "room_no": "a", "floor": 2}});
    assert_eq!(send(change).await, (1, 0, 0));
    stop.cancel();
    task.await.unwrap().unwrap();
    cloud.end().await;
}

#[tokio::test]
async fn trouble_of_the_database_is_to_be_tried_again() {
    let cloud = Cloud::start("trouble").await;
    cloud.rooms().await;
    cloud.send(1, &[upsert(1, 1, "a")]).await;
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
               where datname = current_database() and application_name = 'cloud-sync receiver'";
    assert!(cloud.scalar::<i64>(cut).await > 0);
    let mut tries = 0;
    loop {
        let response = cloud
            .changes(1, upsert(2, 1, "b").to_string())
            .send()
            .await
            .unwrap();
        tries += 1;
        if response.status() == StatusCode::OK {
            break;
        }
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        assert!(tries < 20, "it never recovers");
    }
    assert_eq!(cloud.standing().await, "1=b@1.2");
    cloud.end().await;
}

/// CPU seconds that a process has used.
fn cpu(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_ascii_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

/// `cargo test --release --test main measure -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test"]
async fn measure_300_000_changes() {
    for (rows, packed) in [(5_000_i64, false), (5_000, true), (20_000, false), (1_000, false)] {
        let cloud = Cloud::start_with("measure", |settings| settings.history = false).await;
        let columns = [
            ("record_id", "bigint"),
            ("faculty_id", "bigint"),
            ("teaching_load_id", "bigint"),
            ("camera_id", "bigint"),
            ("record_date", "date"),
            ("record_time_in", "timestamp with time zone"),
            ("record_time_out", "timestamp with time zone"),
            ("time_duration_seconds", "integer"),
            ("record_status", "text"),
            ("record_remarks", "text"),
            ("created_at", "timestamp with time zone"),
            ("updated_at", "timestamp with time zone"),
        ];
        let columns: Vec<Value> = columns
            .iter()
            .map(|(name, of)| json!({"name": name, "type": of}))
            .collect();
        let schema = json!({"entity": "attendance_records", "key": ["record_id"], "columns": columns});
        cloud.declare("attendance-records", schema).await;
        let bodies: Vec<Vec<u8>> = (0..300_000 / rows)
            .map(|batch| {
                let body: String = (batch * rows + 1..=(batch + 1) * rows)
                    .map(|id| {
                        format!(
                            "{{\"position\":{id},\"entity\":\"attendance_records\",\"op\":\"upsert\",\
                             \"key\":{{\"record_id\" : {id}}},\"row\":{{\"record_id\":{id},\"faculty_id\":{},\
                             \"teaching_load_id\":{},\"camera_id\":{},\"record_date\":\"2026-03-{:02}\",\
                             \"record_time_in\":\"2026-03-04T05:{:02}:{:02}.{:06}+08:00\",\
                             \"record_time_out\":\"2026-03-04T06:{:02}:{:02}.{:06}+08:00\",\
                             \"time_duration_seconds\":{},\"record_status\":\"present\",\
                             \"record_remarks\":\"remarks of row {id}\",\
                             \"created_at\":\"2026-03-04T05:06:07.123456+08:00\",\
                             \"updated_at\":\"2026-03-04T05:06:07.123456+08:00\"}}}}\n",
                            id % 300,
                            id % 1000,
                            id % 20,
                            1 + id % 28,
                            id / 60 % 60,
                            id % 60,
                            id,
                            id / 60 % 60,
                            id % 60,
                            id,
                            id % 5000,
                        )
                    })
                    .collect();
                if packed {
                    zstd::bulk::compress(body.as_bytes(), 1).unwrap()
                } else {
                    body.into_bytes()
                }
            })
            .collect();
        let (mut fresh, mut again) = (0.0, 0.0);
        let before = cpu("self");
        for (round, seconds) in [&mut fresh, &mut again].into_iter().enumerate() {
            let start = std::time::Instant::now();
            for body in &bodies {
                let mut request = cloud.changes(1, body.clone());
                if packed {
                    request = request.header("Content-Encoding", "zstd");
                }
                let answer: Value = request.send().await.unwrap().json().await.unwrap();
                let expected = if round == 0 { (rows, 0, 0) } else { (0, rows, 0) };
                assert_eq!(counts(&answer), expected);
            }
            *seconds = start.elapsed().as_secs_f64();
            if round == 0 {
                let pids: Vec<i32> = sqlx::query_scalar(
                    "select pid from pg_stat_activity where datname = current_database() \
                     and application_name = 'cloud-sync receiver'",
                )
                .fetch_all(&cloud.pool)
                .await
                .unwrap();
                let database: f64 = pids.iter().map(|pid| cpu(&pid.to_string())).sum();
                println!(
                    "batches of {rows}, zstd {packed}: {fresh:.2} s; CPU {database:.2} s PostgreSQL, {:.2} s here",
                    cpu("self") - before,
                    fresh = *seconds,
                );
            }
        }
        println!("  sent again, all skipped: {again:.2} s");
        let start = std::time::Instant::now();
        for batch in 0..300_000 / rows {
            let body: String = (batch * rows + 1..=(batch + 1) * rows)
                .map(|id| {
                    format!(
                        "{{\"position\":{},\"entity\":\"attendance_records\",\"op\":\"delete\",\
                         \"key\":{{\"record_id\":{id}}}}}\n",
                        300_000 + id
                    )
                })
                .collect();
            assert_eq!(counts(&cloud.send_text(1, body).await), (rows, 0, 0));
        }
        println!("  all deleted: {:.2} s", start.elapsed().as_secs_f64());
        let start = std::time::Instant::now();
        for body in &bodies {
            let mut request = cloud.changes(2, body.clone());
            if packed {
                request = request.header("Content-Encoding", "zstd");
            }
            let answer: Value = request.send().await.unwrap().json().await.unwrap();
            assert_eq!(counts(&answer), (rows, 0, 0));
        }
        println!(
            "  and put again over their tombstones: {:.2} s",
            start.elapsed().as_secs_f64()
        );
        cloud.end().await;
    }
}
