//! The order of changes: an older position never wins, over rows, tombstones, truncates and backfills.

use super::{Cloud, counts, delete, truncate, upsert};

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
