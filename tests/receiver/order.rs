//! The order of changes: an older version never overwrites rows, tombstones or truncates; and the order in a
//! batch.

use serde_json::{Value, json};

use super::{Cloud, counts, delete, truncate, upsert};
use crate::support::batches::BatchSource;

#[tokio::test]
async fn an_older_version_never_overwrites_a_newer_one() {
    let cloud = Cloud::start("guard").await;
    cloud.rooms().await;
    // Given rows of a source in a later term than the other's,
    let ahead = BatchSource::at_term("ahead", 3);
    let answer = cloud
        .send_as(&ahead, &[upsert(5, 1, "five"), upsert(6, 2, "six")])
        .await;
    assert_eq!(counts(&answer), (2, 0, 0));
    // when the other sends the same rows, then they stay, and only new rows are added. Positions decide
    // nothing.
    let answer = cloud
        .send(
            1,
            &[
                upsert(5, 1, "five"),
                upsert(99, 2, "older"),
                upsert(7, 3, "seven"),
            ],
        )
        .await;
    assert_eq!(counts(&answer), (1, 2, 0));
    assert_eq!(cloud.standing().await, "1=five@1.3.1 2=six@1.3.1 3=seven@1.1.1");
    // The last line of a key counts, whatever its position, and in whatever form the key is written.
    let text = "{\"position\":12,\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{\"room_id\" : 1},\
                \"row\":{\"room_no\":\"twelve\",\r \"room_id\":1}}\n\
                {\"position\":11,\"entity\":\"rooms\",\"op\":\"upsert\",\"key\":{\"room_id\":1},\
                \"row\":{\"room_id\":1,\"room_no\":\"eleven\"}}";
    let answer = cloud.take(&ahead, ahead.next(), text.to_owned()).await;
    assert_eq!(counts(&answer), (1, 1, 0));
    assert_eq!(cloud.standing().await, "1=eleven@1.3.2 2=six@1.3.1 3=seven@1.1.1");
    // A later batch, a later term and a new epoch each are newer.
    cloud.send_as(&ahead, &[upsert(1, 1, "batch")]).await;
    assert!(cloud.standing().await.starts_with("1=batch@1.3.3 "));
    let term = ahead.newest().first_of_term(4);
    assert_eq!(cloud.post_batch(&term, &[upsert(1, 1, "term")]).await.0, 200);
    assert!(cloud.standing().await.starts_with("1=term@1.4.1 "));
    assert_eq!(counts(&cloud.send(2, &[upsert(1, 1, "epoch")]).await), (1, 0, 0));
    ahead.taken(term);
    assert_eq!(
        counts(&cloud.send_as(&ahead, &[upsert(99, 1, "old")]).await),
        (0, 1, 0)
    );
    assert!(cloud.standing().await.starts_with("1=epoch@2.1.1 "));
    assert_eq!(cloud.back().await, 0, "no row ever went back");
    cloud.end().await;
}

#[tokio::test]
async fn a_delete_leaves_a_tombstone_that_only_a_newer_change_lifts() {
    let cloud = Cloud::start("tombstone").await;
    cloud.rooms().await;
    let ahead = BatchSource::at_term("ahead", 3);
    cloud
        .send_as(&ahead, &[upsert(1, 1, "a"), upsert(2, 2, "b")])
        .await;
    // A delete without a row is skipped and leaves nothing.
    let answer = cloud.send_as(&ahead, &[delete(5, 1), delete(6, 9)]).await;
    assert_eq!(counts(&answer), (1, 1, 0));
    assert_eq!(cloud.standing().await, "2=b@1.3.1");
    assert_eq!(cloud.count("cloud_meta.tombstones").await, 1);
    assert_eq!(counts(&cloud.send_as(&ahead, &[delete(6, 9)]).await), (0, 1, 0));
    assert_eq!(cloud.count("cloud_meta.tombstones").await, 1);
    // Older changes: an upsert over the tombstone, a delete of it, a delete of a row.
    let answer = cloud
        .send(1, &[upsert(4, 1, "back"), delete(7, 2), upsert(9, 9, "new")])
        .await;
    assert_eq!(counts(&answer), (1, 2, 0));
    assert_eq!(counts(&cloud.send(1, &[delete(5, 1)]).await), (0, 1, 0));
    assert_eq!(counts(&cloud.send(1, &[delete(5, 2)]).await), (0, 1, 0));
    assert_eq!(
        counts(&cloud.send(1, &[upsert(0, 1, "backfill")]).await),
        (0, 1, 0)
    );
    assert_eq!(cloud.standing().await, "2=b@1.3.1 9=new@1.1.1");
    // A newer delete gives the tombstone its version.
    let version =
        "select string_agg(concat(version >> 40, '.', version & 255), ' ') from cloud_meta.tombstones";
    assert_eq!(cloud.scalar::<String>(version).await, "3.2");
    assert_eq!(counts(&cloud.send_as(&ahead, &[delete(5, 1)]).await), (1, 0, 0));
    assert_eq!(cloud.scalar::<String>(version).await, "3.4");
    // A newer upsert removes the tombstone.
    assert_eq!(
        counts(&cloud.send_as(&ahead, &[upsert(10, 1, "again")]).await),
        (1, 0, 0)
    );
    assert_eq!(cloud.standing().await, "1=again@1.3.5 2=b@1.3.1 9=new@1.1.1");
    assert_eq!(cloud.count("cloud_meta.tombstones").await, 0);
    // Delete and upsert of one row in one batch: the last line counts.
    cloud.send_as(&ahead, &[delete(20, 1), upsert(21, 1, "c")]).await;
    cloud.send_as(&ahead, &[upsert(31, 2, "d"), delete(30, 2)]).await;
    assert_eq!(cloud.standing().await, "1=c@1.3.6 9=new@1.1.1");
    assert_eq!(cloud.back().await, 0, "no row ever went back");
    cloud.end().await;
}

#[tokio::test]
async fn a_truncate_removes_what_is_older_and_keeps_it_away() {
    let cloud = Cloud::start("truncate").await;
    cloud.rooms().await;
    let ahead = BatchSource::at_term("ahead", 3);
    let later = BatchSource::at_term("later", 5);
    cloud.send(1, &[upsert(1, 1, "a"), upsert(2, 2, "b")]).await;
    cloud.send(1, &[delete(3, 2)]).await;
    cloud.send_as(&later, &[upsert(9, 4, "d")]).await;
    // In one batch the truncate comes first, wherever its line is.
    let answer = cloud
        .send_as(
            &ahead,
            &[
                upsert(4, 5, "before"),
                delete(4, 1),
                truncate(5),
                upsert(6, 1, "after"),
                truncate(7),
            ],
        )
        .await;
    assert_eq!(counts(&answer), (3, 2, 0), "{answer}");
    assert_eq!(cloud.standing().await, "1=after@1.3.1 4=d@1.5.1 5=before@1.3.1");
    assert_eq!(cloud.count("cloud_meta.tombstones").await, 0);
    // What is older has no effect, in each of the ways that a batch can take.
    let lone = cloud.send(1, &[upsert(99, 2, "b")]).await;
    assert_eq!(counts(&lone), (0, 1, 0));
    let mixed = cloud
        .send(1, &[upsert(2, 2, "b"), delete(4, 1), truncate(5)])
        .await;
    assert_eq!(counts(&mixed), (0, 3, 0));
    let many: Vec<Value> = (100..300).map(|id| upsert(id, id, "many")).collect();
    assert_eq!(counts(&cloud.send(1, &many).await), (0, 200, 0));
    // What is newer has.
    let answer = cloud.send_as(&ahead, &[upsert(1, 2, "later")]).await;
    assert_eq!(counts(&answer), (1, 0, 0));
    assert_eq!(
        cloud.standing().await,
        "1=after@1.3.1 2=later@1.3.2 4=d@1.5.1 5=before@1.3.1"
    );
    // A new epoch is newer than everything of the old one. Its truncate takes all of it.
    assert_eq!(counts(&cloud.send(2, &[upsert(0, 7, "epoch")]).await), (1, 0, 0));
    assert_eq!(
        counts(&cloud.send(2, &[truncate(0), upsert(0, 8, "all")]).await),
        (2, 0, 0)
    );
    assert_eq!(cloud.standing().await, "8=all@2.1.2");
    cloud.end().await;
}

#[tokio::test]
async fn a_truncate_and_many_upserts_in_one_batch_end_with_the_upserts() {
    let cloud = Cloud::start_with("refill", |settings| settings.history = false).await;
    cloud.rooms().await;
    let rows = |name: &str| (1..=300).map(|id| upsert(id, id, name)).collect::<Vec<_>>();
    cloud.send(1, &rows("old")).await;
    cloud.send(1, &[delete(1, 300)]).await;
    let mut changes = rows("new");
    changes.truncate(200);
    changes.insert(150, truncate(1));
    assert_eq!(counts(&cloud.send(1, &changes).await), (201, 0, 0));
    let new = "cloud.rooms where room_no = 'new' and room_id <= 200 and _version & 255 = 3";
    assert_eq!(cloud.count(new).await, 200);
    assert_eq!(cloud.count("cloud.rooms").await, 200);
    assert_eq!(cloud.count("cloud_meta.tombstones").await, 0);
    cloud.end().await;
}

#[tokio::test]
async fn the_history_tells_of_every_applied_change() {
    let cloud = Cloud::start("history").await;
    cloud.rooms().await;
    cloud.send(1, &[upsert(1, 1, "a")]).await;
    // In a transaction of several statements, and on the fast path
    cloud.send(1, &[delete(2, 1), upsert(3, 2, "b")]).await;
    cloud.send(1, &[delete(2, 2)]).await;
    cloud.send(1, &[delete(2, 2), delete(3, 3)]).await;
    cloud.send(1, &[truncate(4)]).await;
    let history: Value = cloud
        .scalar(
            "select json_agg(concat_ws(' ', entity, key, epoch, version >> 40, version & 255, op, digest is not null) \
             order by id) from cloud_meta.history where site = 'college' and at <= now()",
        )
        .await;
    assert_eq!(
        history,
        json!([
            "rooms [\"1\"] 1 1 1 upsert t",
            "rooms [\"1\"] 1 1 2 delete f",
            "rooms [\"2\"] 1 1 2 upsert t",
            "rooms [\"2\"] 1 1 3 delete f",
            "rooms [\"2\"] 1 1 4 delete f",
            "rooms 1 1 5 truncate f",
        ])
    );
    cloud.end().await;
}
