//! Values, names and keys of every kind: they arrive as they were.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Cloud, counts};
use crate::support::batches::BatchSource;

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
    // And back in lists.
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
    assert!(first.get("_version").is_none());
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
    let ahead = BatchSource::at_term("ahead", 2);
    let answer = cloud
        .send_as(
            &ahead,
            &[
                change(1, "upsert", "a,b", json!(1), "x"),
                change(2, "upsert", "a", json!(1), "y"),
                change(3, "upsert", "a", json!(2), "z"),
            ],
        )
        .await;
    assert_eq!(counts(&answer), (3, 0, 0), "{answer}");
    let answer = cloud
        .send_as(&ahead, &[change(4, "delete", "a", json!(2), "")])
        .await;
    assert_eq!(counts(&answer), (1, 0, 0), "{answer}");
    // Equal numbers in another form are the same key, in one request and against a tombstone.
    let line = |op: &str, number: &str, text: &str| {
        let row = format!("{{\"Part \\\"A\\\"\":\"a\",\"{{key}}\":{number},\"SELECT\":\"{text}\"}}");
        let row = if op == "upsert" { row } else { "null".to_owned() };
        format!(
            "{{\"position\":9,\"entity\":{},\"op\":\"{op}\",\
             \"key\":{{\"Part \\\"A\\\"\":\"a\",\"{{key}}\":{number}}},\"row\":{row}}}\n",
            json!(entity)
        )
    };
    let standing = async || {
        cloud
            .scalar::<String>(
                "select string_agg(concat_ws(':', \"Part \"\"A\"\"\", \"SELECT\", _version & 255), ' ' \
                 order by \"SELECT\") from cloud.\"Roo\"\"ms {table}; drop\"",
            )
            .await
    };
    assert_eq!(
        counts(&cloud.send_text(1, line("upsert", "2.0", "late")).await),
        (0, 1, 0)
    );
    let both = line("upsert", "1.0", "v") + &line("upsert", "1.00", "w");
    let answer = cloud.take(&ahead, ahead.next(), both).await;
    assert_eq!(counts(&answer), (2, 0, 0), "{answer}");
    assert_eq!(standing().await, "a:w:3 a,b:x:1");
    // A delete and an upsert of one row leave the row, in whichever order and form they come.
    for (first, then, other) in [
        ("delete", "upsert", "1.00"),
        ("upsert", "delete", "1.0"),
        ("delete", "upsert", "1.000"),
    ] {
        let both = line(first, "1", "u") + &line(then, other, "u");
        let answer = cloud.take(&ahead, ahead.next(), both).await;
        assert_eq!(counts(&answer), (2, 0, 0), "{answer}");
        let batch = ahead.newest().batch;
        assert_eq!(standing().await, format!("a:u:{batch} a,b:x:1"));
    }
    let tombstones = "cloud_meta.tombstones where key like '%\"1\"%'";
    assert_eq!(cloud.count(tombstones).await, 0);
    let both = line("delete", "1.0", "") + &line("delete", "1.00", "");
    let answer = cloud.take(&ahead, ahead.next(), both).await;
    assert_eq!(answer["rejected"], json!([]), "{answer}");
    assert_eq!(standing().await, "a,b:x:1");
    assert_eq!(cloud.count(tombstones).await, 1);
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
