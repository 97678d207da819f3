//! Many requests and receivers at once, and a database that goes away while they work.

use cloud_sync::receiver::Receiver;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Cloud, counts, delete, lines, settings, upsert};
use crate::support::batches::BatchSource;
use crate::support::postgres::Server;

#[tokio::test(flavor = "multi_thread")]
async fn sources_at_once_end_at_the_highest_version() {
    let cloud = Cloud::start("at_once").await;
    cloud.rooms().await;
    // Given forty sources, each with one batch of its own term, which upserts or deletes every row,
    let mut sent = tokio::task::JoinSet::new();
    for round in 0..40_i64 {
        let term = 1 + round * 37 % 40;
        let changes: Vec<Value> = (0..50)
            .map(|id| {
                if (term + id) % 7 == 3 {
                    delete(id, id)
                } else {
                    upsert(id, id, &term.to_string())
                }
            })
            .collect();
        let source = BatchSource::at_term(&format!("source-{term}"), term);
        let request = cloud.batch(&source.next(), lines(&changes));
        sent.spawn(async move { request.send().await.unwrap().status() });
    }
    // when they arrive at once,
    while let Some(status) = sent.join_next().await {
        assert_eq!(status.unwrap(), StatusCode::OK);
    }
    // then each row that the newest batch upserts is as that batch has it. Nothing is certain of a row that
    // it deletes: the delete may have arrived before there was a row, and an older upsert after it.
    let newest = (0..50_i64).filter(|id| (40 + id) % 7 != 3);
    for id in newest.clone() {
        let standing = format!("cloud.rooms where room_id = {id} and room_no = '40' and _version >> 40 = 40");
        assert_eq!(cloud.count(&standing).await, 1, "{id}");
    }
    assert_eq!(cloud.back().await, 0, "no row ever went back");
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_on_many_connections_is_applied_once() {
    let cloud = Cloud::start("repeats").await;
    cloud.rooms().await;
    cloud.send(1, &[upsert(1, 1, "known")]).await;
    // On the fast path, as arrays, copied
    for (nth, rows) in [1_i64, 70, 300].into_iter().enumerate() {
        let changes: Vec<Value> = (0..rows)
            .map(|id| upsert(id, 1000 * (nth as i64 + 1) + id, "x"))
            .collect();
        let name = cloud.source.next();
        let mut sent = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let request = cloud.batch(&name, lines(&changes));
            sent.spawn(async move {
                let response = request.send().await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                response.text().await.unwrap()
            });
        }
        while let Some(answer) = sent.join_next().await {
            assert_eq!(
                answer.unwrap(),
                format!("{{\"applied\":{rows},\"skipped\":0,\"rejected\":[]}}")
            );
        }
        cloud.source.taken(name);
        let kept = format!(
            "cloud_meta.history where version & 255 = {}",
            cloud.source.newest().batch
        );
        assert_eq!(cloud.count(&kept).await, rows);
    }
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
    // A second receiver on the same database sees a column that was declared through the first.
    let other = Receiver::bind(settings(&cloud.database_url, files.path()))
        .await
        .unwrap();
    let address = other.address();
    let stop = CancellationToken::new();
    let task = tokio::spawn(other.serve(stop.clone()));
    cloud.rooms().await;
    let send = async |change: Value| {
        let name = cloud.source.next();
        let request = cloud
            .client
            .post(format!("http://{address}/api/changes"))
            .bearer_auth("old-key")
            .body(change.to_string());
        let answer: Value = name.put(request).send().await.unwrap().json().await.unwrap();
        cloud.source.taken(name);
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
    assert_eq!(cloud.standing().await, "1=b@1.1.2");
    cloud.end().await;
}
