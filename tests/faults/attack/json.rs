//! Deep, wide and broken JSON: refused row by row, or as a whole.

use serde_json::{Value, json};

use super::{Fort, MEMORY};
use crate::support::oracle::Tally;
use crate::support::site::KEY;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_json_is_refused_row_by_row_or_as_a_whole() {
    let fort = Fort::build("deep").await;
    let mut tally = Tally::default();
    let deep =
        |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    let line = |position: i64, key: &str, row: &str| {
        format!(
            "{{\"position\":{position},\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{key},\"row\":{row}}}\n"
        )
    };
    // Given lines that are each a blow to some parser, between two good ones,
    let arrays = deep("[", "]", 1_000_000);
    let objects = deep("{\"a\":", "}", 1_000_000);
    let many: String = (0..100_000).map(|n| format!(",\"c{n}\":{n}")).collect();
    let rows = [
        (
            "{\"room_id\":2}".to_owned(),
            format!("{{\"room_id\":2,\"about\":{arrays}}}"),
        ),
        (
            "{\"room_id\":3}".to_owned(),
            format!("{{\"room_id\":3,\"about\":{objects}}}"),
        ),
        (
            "{\"room_id\":4}".to_owned(),
            format!("{{\"room_id\":4,\"tags\":{arrays}}}"),
        ),
        (
            "{\"room_id\":5}".to_owned(),
            format!("{{\"room_id\":5,\"room_no\":{objects}}}"),
        ),
        (
            format!("{{\"room_id\":{arrays}}}"),
            format!("{{\"room_id\":{arrays}}}"),
        ),
        ("{\"room_id\":6}".to_owned(), format!("{{\"room_id\":6{many}}}")),
        (format!("{{\"room_id\":7{many}}}"), "{\"room_id\":8}".to_owned()),
        (
            "{\"room_id\":9}".to_owned(),
            "{\"room_id\":9,\"room_no\":\"\\u0000\"}".to_owned(),
        ),
        (
            "{\"room_id\":10}".to_owned(),
            "{\"room_id\":10,\"room_no\":\"\\ud800\"}".to_owned(),
        ),
        ("{\"room_id\":1e400}".to_owned(), "{\"room_id\":1e400}".to_owned()),
        (
            "{\"room_id\":11}".to_owned(),
            "{\"room_id\":11,\"room_id\":12}".to_owned(),
        ),
    ];
    for (nth, (key, row)) in rows.iter().enumerate() {
        let at = 10 * nth as i64 + 1;
        let good = |n: i64| {
            let key = format!("{{\"room_id\":{}}}", 1000 + at + n);
            line(at + n, &key, &key)
        };
        let body = format!("{}{}{}", good(0), line(at + 1, key, row), good(2));
        tally.faults += 1;
        let answer = fort.changes().body(body).send().await.unwrap();
        let status = answer.status();
        let answer: Value = answer.json().await.unwrap();
        // then the good ones are applied, and the odd one is refused alone, for good,
        assert_eq!(status, 200, "{nth}: {answer}");
        fort.taken();
        let (applied, rejected) = (&answer["applied"], answer["rejected"].as_array().unwrap().len());
        println!("{nth}: {answer}");
        assert!(
            applied == 3 && rejected == 0 || applied == 2 && rejected == 1,
            "{nth}: {answer}"
        );
        assert!(answer.to_string().len() < 2000);
    }
    // and so it is on the other calls.
    for (path, body) in [
        ("rooms", arrays.clone()),
        ("rooms", format!("{{\"room_id\":2,\"about\":{objects}}}")),
        ("bulk/rooms", format!("{{\"records\":{arrays}}}")),
        ("bulk/rooms", objects.clone()),
        ("changes", arrays.clone()),
        ("changes", "\0\r\n\u{feff}".to_owned()),
    ] {
        let request = fort.source.next().put(fort.post(path));
        let status = request.body(body).send().await.unwrap().status();
        assert!(status.is_client_error(), "{path}: {status}");
        tally.faults += 1;
    }
    for schema in [
        serde_json::from_str::<Value>(&deep("[", "]", 100)).unwrap(),
        json!({"entity": "wide", "key": ["c0"], "columns":
            (0..200_000).map(|n| json!({"name": format!("c{n}"), "type": "text"})).collect::<Vec<_>>()}),
        json!({"entity": "a".repeat(1 << 20), "key": ["a"], "columns": [{"name": "a", "type": "text"}]}),
        json!({"entity": "a", "key": vec!["a"; 100_000], "columns": [{"name": "a", "type": "text"}]}),
    ] {
        let status = fort.declare("odd", &schema).await;
        assert!((400..500).contains(&status), "{status}");
        tally.faults += 1;
    }
    let put = fort
        .client
        .put(format!("{}/schema/odd", fort.cloud.url))
        .bearer_auth(KEY);
    assert_eq!(put.body(arrays).send().await.unwrap().status(), 400);
    fort.is_serving(1_000).await;
    let peak = fort.receiver.peak_memory();
    println!("at most {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes");
    fort.is_discreet(&[]);
}
