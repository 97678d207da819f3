//! Requests and receivers at once, and a database that goes away meanwhile.

use cloud_sync::receiver::Receiver;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Cloud, counts, delete, settings, upsert};
use crate::support::postgres::Server;

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
