//! H13, sentences 11 and 13: the numbers of batches, terms and positions.

use cloud_sync::drain::DrainStep;

use super::{TABLE, drain_by, drained, held, things};
use crate::support::site::{Cloud, Site, connect};
use crate::support::sql::number;

async fn term_of(cloud: &Cloud) -> i64 {
    let there = connect(&cloud.database_url).await;
    number(
        &there,
        "select term from cloud_meta.sources where source_id <> ''",
    )
    .await
}

// H13. Batches whose changes are all kept here, between others: none is refused for a number that was never
// sent.
#[tokio::test]
async fn batches_with_nothing_to_send_leave_no_hole_in_the_numbers() {
    let (cloud, site) = Site::captured("kept", TABLE, &things("deletes = \"keep\"")).await;
    let drain = drain_by(&site, 1);
    let mut stages = drain.open().await.unwrap();
    site.run("insert into thing values (1, 'one')").await;
    drained(&mut stages).await;
    let term = term_of(&cloud).await;
    for id in 2..5 {
        site.run(&format!(
            "insert into thing values (100); delete from thing where id = 100; \
             insert into thing values ({id}, 'next'); \
             delete from thing where id = {}",
            id - 1
        ))
        .await;
        drained(&mut stages).await;
    }
    assert_eq!(
        held(&cloud, "select id::text from cloud.things order by id").await,
        ["1", "2", "3", "4"]
    );
    // A refusal would have begun a new term.
    assert_eq!(term_of(&cloud).await, term);
}

// Sentence 13. A drain that opens, finds nothing and ends uses up no term.
#[tokio::test]
async fn a_drain_with_nothing_to_send_begins_no_term() {
    let (_cloud, site) = Site::captured("idle", TABLE, &things("")).await;
    let drain = site.drain();
    site.run("insert into thing values (1, 'one')").await;
    drain.drain_all().await.unwrap();
    let term = "select term from cloud_sync.term";
    let before = number(&site.client, term).await;
    for _ in 0..5 {
        assert_eq!(drain.drain_once().await.unwrap(), DrainStep::Idle);
    }
    assert_eq!(number(&site.client, term).await, before);
}

// Sentence 11. Positions that are handed out in blocks do not rise as they are taken.
#[tokio::test]
async fn a_sequence_that_hands_out_blocks_is_refused() {
    let (_cloud, site) = Site::captured("blocks", TABLE, &things("")).await;
    let drain = site.drain();
    for (altered, mended) in [
        ("cache 10", "cache 1"),
        ("increment 2", "increment 1"),
        ("cycle", "no cycle"),
    ] {
        site.run(&format!("alter sequence cloud_sync.position {altered}"))
            .await;
        let error = drain.drain_once().await.unwrap_err();
        assert!(error.to_string().contains("cloud_sync.position"), "{error}");
        site.run(&format!("alter sequence cloud_sync.position {mended}"))
            .await;
        drain.drain_once().await.unwrap();
    }
}
