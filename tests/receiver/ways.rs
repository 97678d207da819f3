//! The ways in which changes reach a table: on the fast path, as arrays, copied. The rows are the same.

use serde_json::{Value, json};

use super::{Cloud, counts, delete, truncate, upsert};
use crate::support::batches::BatchSource;
use crate::support::counting_proxy::CountingProxy;
use crate::support::postgres::Server;

/// Declares an entity of many types; a trigger records the statement of each insert.
async fn things(cloud: &Cloud, entity: &str) {
    let columns = [
        ("id", "integer"),
        ("small", "smallint"),
        ("big", "bigint"),
        ("exact", "numeric"),
        ("one", "real"),
        ("two", "double precision"),
        ("words", "text"),
        ("raw", "json"),
        ("doc", "jsonb"),
        ("photo", "bytea"),
        ("day", "date"),
        ("clock", "time"),
        ("wall", "timestamp"),
        ("at", "timestamptz"),
        ("ok", "boolean"),
        ("ref", "uuid"),
    ];
    let columns: Vec<Value> = columns
        .iter()
        .map(|(name, of)| json!({"name": name, "type": of}))
        .collect();
    let schema = json!({"entity": entity, "key": ["id"], "columns": columns});
    assert_eq!(cloud.declare(entity, schema).await.status(), 200);
    let notes = format!(
        "create table if not exists public.notes (entity text, statement text);
         create or replace function public.note() returns trigger language plpgsql as \
         $$ begin insert into public.notes values (tg_table_name, current_query()); return null; end $$;
         create trigger note after insert on cloud.{entity} execute function public.note()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(notes))
        .execute(&cloud.pool)
        .await
        .unwrap();
}

fn thing(id: i64) -> Value {
    let numbers = [
        "0",
        "-0.00",
        "12345678901234567890.5",
        "0.000100",
        "-10000",
        "1e3",
    ];
    let texts = [
        "plain",
        "it's \\ \"so\", {null}",
        "ünï\nline",
        "",
        "null",
        "$1 %s",
    ];
    let exact: Value = serde_json::from_str(numbers[id as usize % 6]).unwrap();
    json!({
        "id": id, "small": -id, "big": i64::MAX - id, "exact": exact, "one": id as f64 / 8.0, "two": id as f64 * 0.1,
        "words": texts[id as usize % 6], "raw": {"it's": [id, null]}, "doc": {"b": 1, "a": texts[id as usize % 6]},
        "photo": "AAH/", "day": "2024-02-29", "clock": "23:59:59.5", "wall": "2026-03-04T05:06:07.123456",
        "at": if id % 50 == 0 { "infinity" } else { "2026-03-04T05:06:07.5+05:45" },
        "ok": id % 2 == 0, "ref": if id % 7 == 0 { Value::Null } else { json!("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11") },
    })
}

fn things_of(entity: &str, ids: std::ops::RangeInclusive<i64>) -> Vec<Value> {
    ids.map(
        |id| json!({"position": id, "entity": entity, "op": "upsert", "key": {"id": id}, "row": thing(id)}),
    )
    .collect()
}

#[tokio::test]
async fn values_are_the_same_whichever_way_they_take() {
    let cloud = Cloud::start_with("ways", |settings| settings.history = false).await;
    for entity in ["brief", "arrays", "copied"] {
        things(&cloud, entity).await;
    }
    // The first request makes the table and the source known.
    for change in things_of("brief", 1..=300).chunks(60) {
        assert_eq!(counts(&cloud.send(1, change).await), (60, 0, 0));
    }
    for change in things_of("arrays", 1..=300).chunks(75) {
        assert_eq!(counts(&cloud.send(1, change).await), (75, 0, 0));
    }
    for change in things_of("copied", 1..=300).chunks(150) {
        assert_eq!(counts(&cloud.send(1, change).await), (150, 0, 0));
    }
    // Each row has the version of its batch; otherwise they are the same.
    let mut batch = 0;
    for (entity, batches) in [("brief", 5), ("arrays", 4), ("copied", 2)] {
        let versions = format!(
            "select string_agg(distinct (_version - (1::bigint << 40))::text, ' ') from cloud.{entity}"
        );
        let mut expected: Vec<String> = (batch + 1..=batch + batches)
            .map(|nth: i64| nth.to_string())
            .collect();
        expected.sort();
        assert_eq!(
            cloud.scalar::<String>(&versions).await,
            expected.join(" "),
            "{entity}"
        );
        batch += batches;
        let level = format!("update cloud.{entity} set _version = 0");
        sqlx::raw_sql(sqlx::AssertSqlSafe(level))
            .execute(&cloud.pool)
            .await
            .unwrap();
    }
    for entity in ["brief", "arrays"] {
        let differ = cloud
            .count(&format!(
                "(select t::text from cloud.copied t except select t::text from cloud.{entity} t) d"
            ))
            .await;
        assert_eq!(differ, 0, "{entity}");
    }
    let ways: String = cloud
        .scalar(
            "select string_agg(concat(entity, ' ', way, ' ', count), ', ' order by entity, way) from (
             select entity, split_part(trim(statement), ' ', 1) as way, count(*) from notes group by 1, 2) n",
        )
        .await;
    // Unusual values of a copied request go as arrays.
    assert_eq!(ways, "arrays with 4, brief with 5, copied copy 2, copied with 2");
    cloud.end().await;
}

#[tokio::test]
async fn a_lone_change_costs_one_round_trip() {
    let (proxy, database_url) = CountingProxy::before(&Server::get().database("lone").await).await;
    let cloud = Cloud::start_with("lone", |settings| settings.database_url = database_url).await;
    cloud.rooms().await;
    // The first batch makes the table known, the first small upsert and delete are prepared.
    for change in [upsert(1, 1, "one"), upsert(2, 5, "five"), delete(3, 5)] {
        assert_eq!(counts(&cloud.send(1, &[change]).await), (1, 0, 0));
    }
    for change in [upsert(4, 1, "two"), delete(5, 1), upsert(6, 2, "three")] {
        let before = proxy.of("cloud-sync receiver");
        assert_eq!(counts(&cloud.send(1, &[change]).await), (1, 0, 0));
        let cost = proxy.of("cloud-sync receiver") - before;
        // Begin, the lock, one statement that does all, commit.
        assert_eq!((cost.statements, cost.round_trips), (4, 1));
    }
    assert_eq!(cloud.standing().await, "2=three@1.1.6");
    cloud.end().await;
}

#[tokio::test]
async fn what_stands_or_was_removed_is_guarded_in_a_large_request_too() {
    let cloud = Cloud::start_with("guarded", |settings| settings.history = false).await;
    cloud.rooms().await;
    let ahead = BatchSource::at_term("ahead", 9);
    cloud.send_as(&ahead, &[upsert(900, 150, "newer")]).await;
    cloud.send(1, &[upsert(5, 160, "older")]).await;
    let mut changes: Vec<Value> = (1..=400).map(|id| upsert(10 + id, id, "batch")).collect();
    changes[299] = json!({"position": 310, "entity": "rooms", "op": "upsert", "key": {"room_id": 300},
        "row": {"room_id": 301, "room_no": "another"}});
    changes[349]["row"]["room_no"] = json!("zero\0byte");
    let answer = cloud.send(1, &changes).await;
    assert_eq!(counts(&answer), (397, 1, 2), "{answer}");
    assert_eq!(answer["rejected"][0]["position"], 310);
    assert_eq!(answer["rejected"][1]["position"], 360);
    let odd = "concat(room_no, _version >> 40, _version & 255) from cloud.rooms where room_id";
    assert_eq!(
        cloud.scalar::<String>(&format!("select {odd} = 150")).await,
        "newer91"
    );
    assert_eq!(
        cloud.scalar::<String>(&format!("select {odd} = 160")).await,
        "batch12"
    );
    // Tombstones and a truncate's mark hold against large requests.
    cloud.send_as(&ahead, &[delete(2000, 400)]).await;
    let changes: Vec<Value> = (400..=600).map(|id| upsert(600 + id, id, "batch")).collect();
    assert_eq!(counts(&cloud.send(1, &changes).await), (200, 1, 0));
    cloud.send_as(&ahead, &[truncate(3000)]).await;
    let changes: Vec<Value> = (1..=200).map(|id| upsert(2900 + id, id, "batch")).collect();
    assert_eq!(counts(&cloud.send(1, &changes).await), (0, 200, 0));
    assert_eq!(cloud.count("cloud.rooms").await, 0);
    let changes: Vec<Value> = (1..=100).map(|id| upsert(id, id, "batch")).collect();
    assert_eq!(counts(&cloud.send_as(&ahead, &changes).await), (100, 0, 0));
    assert_eq!(cloud.count("cloud.rooms").await, 100);
    cloud.end().await;
}
