//! Turns: a batch is applied once and in its order, and a batch out of order changes nothing.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Cloud, counts, delete, lines, upsert};
use crate::support::batches::{BatchName, BatchSource};
use crate::support::postgres::Server;

/// Sends a batch that is refused with this code, and changes nothing.
async fn refused(cloud: &Cloud, name: &BatchName, code: &str, source: Value) {
    let before = (cloud.standing().await, sources(cloud).await);
    let (status, answer) = cloud.post_batch(name, &[upsert(1, 1, "refused")]).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    assert_eq!(answer["success"], false);
    assert_eq!(
        (answer["code"].as_str(), &answer["source"]),
        (Some(code), &source),
        "{answer}"
    );
    assert!(answer["error"].is_string());
    assert_eq!((cloud.standing().await, sources(cloud).await), before);
}

/// Sends a batch that is applied.
async fn taken(cloud: &Cloud, name: &BatchName, number: &str) {
    let (status, answer) = cloud.post_batch(name, &[upsert(1, 1, number)]).await;
    assert_eq!((status, counts(&answer)), (StatusCode::OK, (1, 0, 0)), "{answer}");
}

/// The sources as the database has them.
async fn sources(cloud: &Cloud) -> Value {
    cloud
        .scalar("select coalesce(json_agg(s order by source_id), '[]') from cloud_meta.sources s")
        .await
}

/// What `GET /sync-status` returns.
async fn status(cloud: &Cloud) -> Value {
    let response = cloud.request(Method::GET, "sync-status").send().await.unwrap();
    response.json().await.unwrap()
}

#[tokio::test]
async fn only_the_next_batch_of_the_newest_term_is_taken() {
    let cloud = Cloud::start("turns").await;
    cloud.rooms().await;
    let at = |epoch: i64, term: i64, batch: i64| json!({"epoch": epoch, "term": term, "batch": batch});
    let zero = BatchSource::new("source-1").newest();
    // A source that is not known must begin with the first batch, of any term.
    let first = zero.first_of_term(2);
    refused(&cloud, &first.next(), "out-of-turn", Value::Null).await;
    taken(&cloud, &first, "first").await;
    let second = first.next();
    refused(&cloud, &first.after(9), "out-of-turn", at(1, 2, 1)).await;
    taken(&cloud, &second, "second").await;
    assert_eq!(cloud.standing().await, "1=second@1.2.2");
    // Each of these is decided in a transaction of several statements, as the fast path takes only the next
    // batch.
    let here = at(1, 2, 2);
    refused(&cloud, &first, "different-batch", here.clone()).await;
    refused(&cloud, &second, "different-batch", here.clone()).await;
    refused(&cloud, &second.after(9), "out-of-turn", here.clone()).await;
    let copy = BatchName {
        nonce: "the-nonce-of-a-copy".to_owned(),
        ..second.next()
    };
    refused(&cloud, &copy, "unknown-term", here.clone()).await;
    refused(&cloud, &zero.first_of_term(1), "stale-term", here.clone()).await;
    // A new term must know the nonce of the one before, and begin at 1.
    let third = second.first_of_term(3);
    let previous = |previous: Option<&str>| BatchName {
        previous: previous.map(str::to_owned),
        ..third.clone()
    };
    for wrong in [None, Some("wrong"), Some(third.nonce.as_str())] {
        refused(&cloud, &previous(wrong), "unknown-term", here.clone()).await;
    }
    let skipped = BatchName {
        batch: 2,
        ..third.clone()
    };
    refused(&cloud, &skipped, "out-of-turn", here.clone()).await;
    taken(&cloud, &third, "third").await;
    refused(&cloud, &second.next(), "stale-term", at(1, 3, 1)).await;
    // The first batch of a term is repeated as any other.
    let (status, answer) = cloud.post_batch(&third, &[upsert(1, 1, "third")]).await;
    assert_eq!((status, counts(&answer)), (StatusCode::OK, (1, 0, 0)));
    // A new epoch begins at 1, whatever its term and nonce.
    let epoch = BatchName {
        epoch: 7,
        term: 1,
        nonce: "epoch".to_owned(),
        previous: None,
        ..third.clone()
    };
    refused(&cloud, &epoch.next(), "out-of-turn", at(1, 3, 1)).await;
    taken(&cloud, &epoch, "epoch").await;
    refused(&cloud, &third.next(), "stale-epoch", at(7, 1, 1)).await;
    assert_eq!(cloud.standing().await, "1=epoch@7.1.1");
    // Another source, and a source of another site, have their own turns.
    taken(&cloud, &epoch.next(), "last").await;
    cloud
        .send_as(&BatchSource::new("other"), &[upsert(1, 9, "other")])
        .await;
    let annex = zero.next().put(
        cloud
            .client
            .post(format!("{}/api/changes", cloud.root))
            .bearer_auth("annex-key"),
    );
    assert_eq!(annex.send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(cloud.standing().await, "1=last@7.1.2 9=other@1.1.1");
    cloud.end().await;
}

#[tokio::test]
async fn a_repeated_batch_gets_its_stored_answer_and_applies_nothing() {
    let cloud = Cloud::start("repeat").await;
    cloud.rooms().await;
    let bad = json!({"position": 3, "entity": "rooms", "op": "upsert", "key": {"room_id": 3},
                     "row": {"room_id": 3, "room_no": "\u{0}"}});
    let unknown = json!({"position": 4, "entity": "nothing", "op": "delete", "key": {"id": 1}});
    let many: Vec<Value> = (100..300).map(|id| upsert(id, id, "many")).collect();
    // In each of the ways that a batch can take, and with rejections
    let batches = [
        vec![upsert(1, 1, "one"), upsert(1, 1, "last"), bad, unknown],
        vec![upsert(2, 2, "brief"), upsert(2, 2, "twice")],
        vec![delete(2, 1), delete(2, 77)],
        many,
        vec![delete(5, 2), upsert(5, 4, "four")],
        vec![],
    ];
    for changes in batches {
        let name = cloud.source.next();
        let text = async || {
            let response = cloud.batch(&name, lines(&changes)).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["content-type"], "application/json");
            response.text().await.unwrap()
        };
        let answer = text().await;
        if cloud.source.newest().batch == 0 {
            let first: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(counts(&first), (1, 1, 2), "{answer}");
        }
        let before = (sources(&cloud).await, cloud.count("cloud_meta.history").await);
        // Then something that a second application would show
        cloud
            .request(Method::POST, "rooms")
            .json(&json!({"room_id": 1, "room_no": "posted"}))
            .send()
            .await
            .unwrap();
        let standing = cloud.standing().await;
        for _ in 0..2 {
            assert_eq!(text().await, answer);
        }
        // Packed, it is the same text.
        let packed = zstd::bulk::compress(lines(&changes).as_bytes(), 3).unwrap();
        let packed = cloud.batch(&name, packed).header("Content-Encoding", "zstd");
        assert_eq!(packed.send().await.unwrap().text().await.unwrap(), answer);
        assert_eq!(cloud.standing().await, standing);
        // The posted row, and nothing else
        assert_eq!(cloud.count("cloud_meta.history").await, before.1 + 1);
        let ours = |all: Value| {
            let all = all.as_array().unwrap().clone();
            all.into_iter().find(|one| one["source_id"] == "source-1")
        };
        assert_eq!(ours(sources(&cloud).await), ours(before.0));
        // Another body under the same number is refused: one change more, or only a blank line.
        let mut more = changes.clone();
        more.push(upsert(9, 9, "more"));
        for body in [lines(&more), format!("{}\n", lines(&changes))] {
            let response = cloud.batch(&name, body).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::CONFLICT);
            let refused: Value = response.json().await.unwrap();
            assert_eq!(refused["code"], "different-batch", "{refused}");
        }
        assert_eq!(cloud.standing().await, standing);
        cloud.source.taken(name);
    }
    cloud.end().await;
}

#[tokio::test]
async fn a_batch_that_comes_early_waits_for_those_before_it() {
    let cloud = Cloud::start("early").await;
    cloud.rooms().await;
    let first = cloud.source.next();
    taken(&cloud, &first, "first").await;
    // Of seven batches that arrive at once, the last one first, each is applied after the one before it,
    let batches: Vec<_> = (1..=7).map(|behind| first.after(behind)).collect();
    let sent = batches.iter().rev().map(async |batch| {
        // whether it is applied on the fast path or in a transaction of several statements,
        let text = format!("batch {}", batch.batch);
        let changes: Vec<_> = (1..=batch.batch % 2 * 70 + 1)
            .map(|id| upsert(id, id, &text))
            .collect();
        tokio::time::sleep(Duration::from_millis(20 * (8 - batch.batch) as u64)).await;
        let (status, answer) = cloud.post_batch(batch, &changes).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(counts(&answer), (changes.len() as i64, 0, 0));
        (batch.clone(), changes, answer)
    });
    let sent = futures::future::join_all(sent).await;
    let standing = cloud.standing().await;
    assert!(
        standing.starts_with("1=batch 8@1.1.8 2=batch 7@1.1.7"),
        "{standing}"
    );
    // and each that is sent again gets the answer that it had.
    for (batch, changes, answer) in &sent {
        let again = cloud.post_batch(batch, changes).await;
        assert_eq!(again, (StatusCode::OK, answer.clone()));
        let (status, answer) = cloud.post_batch(batch, &[upsert(1, 1, "other")]).await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::CONFLICT, &json!("different-batch"))
        );
    }
    assert_eq!(cloud.standing().await, standing);
    // Older batches are not remembered.
    taken(&cloud, &first.after(8), "ninth").await;
    refused(
        &cloud,
        &first,
        "out-of-turn",
        json!({"epoch": 1, "term": 1, "batch": 9}),
    )
    .await;
    // A batch whose predecessor does not arrive is refused after a while.
    refused(
        &cloud,
        &first.after(10),
        "out-of-turn",
        json!({"epoch": 1, "term": 1, "batch": 9}),
    )
    .await;
    cloud.end().await;
}

#[tokio::test]
async fn an_empty_batch_is_taken_like_any_other() {
    let cloud = Cloud::start("empty").await;
    for body in ["", "\n", " \r\n\n"] {
        let answer = cloud.send_text(1, body.to_owned()).await;
        assert_eq!(answer, json!({"applied": 0, "skipped": 0, "rejected": []}));
    }
    assert_eq!(status(&cloud).await["sources"]["source-1"]["batch"], 3);
    let gone = cloud.post_batch(&cloud.source.next().after(8), &[]).await;
    assert_eq!(
        (gone.0, &gone.1["code"]),
        (StatusCode::CONFLICT, &json!("out-of-turn"))
    );
    cloud.end().await;
}

#[tokio::test]
async fn headers_that_are_not_valid_are_refused() {
    let cloud = Cloud::start("headers").await;
    let good = cloud.source.next();
    let set = |header: &str, value: &str| {
        let mut request = cloud.batch(&good, "").build().unwrap();
        let name: reqwest::header::HeaderName = header.parse().unwrap();
        request.headers_mut().remove(&name);
        if value != "-" {
            request.headers_mut().insert(
                name,
                reqwest::header::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        cloud.client.execute(request)
    };
    let terms = (1_i64 << 23).to_string();
    let batches = (1_i64 << 40).to_string();
    let long = "x".repeat(201);
    for (header, value) in [
        ("X-Source-Id", "-"),
        ("X-Source-Id", ""),
        ("X-Epoch", "-"),
        ("X-Epoch", "0"),
        ("X-Term", "-"),
        ("X-Term", "0"),
        ("X-Term", "x"),
        ("X-Term", &terms),
        ("X-Batch", "-"),
        ("X-Batch", "0"),
        ("X-Batch", &batches),
        ("X-Term-Nonce", "-"),
        ("X-Term-Nonce", ""),
        ("X-Term-Nonce", "a b"),
        ("X-Term-Nonce", "é"),
        ("X-Term-Nonce", &long[..65]),
        ("X-Previous-Nonce", ""),
        ("X-Source-Database", &long),
    ] {
        let response = set(header, value).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{header}: {value}");
        let answer: Value = response.json().await.unwrap();
        assert!(answer["error"].as_str().unwrap().contains(header), "{answer}");
    }
    assert_eq!(sources(&cloud).await, json!([]));
    for (header, value) in [("X-Term-Nonce", &long[..64]), ("X-Term", "8388607")] {
        let source = format!("source of {header}");
        let mut request = cloud.batch(&good, "").build().unwrap();
        request
            .headers_mut()
            .insert("x-source-id", source.parse().unwrap());
        let name: reqwest::header::HeaderName = header.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(
            cloud.client.execute(request).await.unwrap().status(),
            StatusCode::OK
        );
    }
    cloud.end().await;
}

#[tokio::test]
async fn the_status_tells_of_each_source_and_of_the_receiver() {
    let cloud = Cloud::start("sources").await;
    cloud.rooms().await;
    let empty = status(&cloud).await;
    assert_eq!(
        (&empty["sources"], &empty["last_sync"]),
        (&json!({}), &Value::Null)
    );
    let identity: String = cloud
        .scalar("select receiver_id::text from cloud_meta.receiver")
        .await;
    assert_eq!(identity.len(), 36);
    assert_eq!(empty["receiver"], identity);
    // In a transaction of several statements, then on the fast path
    let named = BatchName {
        database: Some("db.college:5432/école's".to_owned()),
        ..cloud.source.next()
    };
    taken(&cloud, &named, "a").await;
    let expected = json!({"epoch": 1, "term": 1, "batch": 1, "database": "db.college:5432/école's"});
    assert_eq!(status(&cloud).await["sources"], json!({"source-1": expected}));
    let moved = BatchName {
        database: Some("it's \\ another".to_owned()),
        ..named.next()
    };
    taken(&cloud, &moved, "b").await;
    let posted = cloud
        .request(Method::POST, "rooms")
        .json(&json!({"room_id": 5}))
        .send()
        .await
        .unwrap();
    assert_eq!(posted.status(), StatusCode::OK);
    cloud
        .send_as(&BatchSource::at_term("other", 4), &[upsert(1, 7, "x")])
        .await;
    let now = status(&cloud).await;
    assert_eq!(
        now["sources"],
        json!({
            "source-1": {"epoch": 1, "term": 1, "batch": 2, "database": "it's \\ another"},
            "other": {"epoch": 1, "term": 4, "batch": 1, "database": null},
        })
    );
    assert_eq!(now["receiver"], identity);
    assert!(now["last_sync"].is_string());
    cloud.end().await;
}

#[tokio::test]
async fn a_database_with_the_tables_of_an_older_receiver_is_refused() {
    let files = tempfile::tempdir().unwrap();
    for older in [
        "create schema cloud_meta; create table cloud_meta.sources (site text, position bigint)",
        "update cloud_meta._sqlx_migrations set checksum = '\\x00'",
    ] {
        let url = Server::get().database("older").await;
        let settings = super::settings(&url, files.path());
        if older.starts_with("update") {
            cloud_sync::receiver::Receiver::bind(settings.clone())
                .await
                .unwrap();
        }
        let pool = sqlx::PgPool::connect(&url).await.unwrap();
        sqlx::raw_sql(older).execute(&pool).await.unwrap();
        let error = cloud_sync::receiver::Receiver::bind(settings)
            .await
            .err()
            .expect("a refusal")
            .to_string();
        assert!(
            error.contains("migrate the receiver's database")
                && error.contains("fresh database")
                && error.contains("cloud-sync sync --force"),
            "{error}"
        );
    }
}
