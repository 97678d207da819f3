//! H17 and sentence 12: the outbox gives its space back, and never a touch with it.

use super::{TABLE, drained, things};
use crate::support::site::{Site, connect};
use crate::support::sql::number;

// H17. The trimmer has looked, and holds no lock yet; the writer of an open touch commits.
#[tokio::test]
async fn a_touch_that_commits_while_a_segment_is_trimmed_is_kept() {
    let (cloud, site) = Site::captured("trim", TABLE, &things("")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    // Given a segment whose visible touches are accepted, and a writer in it
    let writer = connect(&site.database_url).await;
    site.run("insert into thing values (1, 'one')").await;
    writer
        .batch_execute("begin; insert into thing values (2, 'late')")
        .await
        .unwrap();
    drained(&mut stages).await;
    let state = "select coalesce(pg_sequence_last_value('cloud_sync.state'), 0) & 65535";
    if number(&site.client, state).await == 0 {
        site.run("select cloud_sync.rotate(0)").await;
    }
    // when it commits between the trim's look and its lock,
    let term = number(&site.client, "select term from cloud_sync.term").await;
    let (trimmer, lock) = (
        connect(&site.database_url).await,
        connect(&site.database_url).await,
    );
    let trim = format!(
        "set application_name = 'cloud-sync trim'; \
         select cloud_sync.trim_segment({term}, 0, pg_current_snapshot(), 9223372036854775807)"
    );
    lock.batch_execute("begin; select from cloud_sync.term for update")
        .await
        .unwrap();
    let (trimmed, ()) = tokio::join!(trimmer.batch_execute(&trim), async {
        crate::support::sql::until_session_waits(&site.client, "trim").await;
        writer.batch_execute("commit").await.unwrap();
        lock.batch_execute("commit").await.unwrap();
    });
    trimmed.unwrap();
    // then its touch is there, and arrives.
    assert_eq!(
        number(
            &site.client,
            "select count(*) from only cloud_sync.segment_0 where number = 2"
        )
        .await,
        1
    );
    drained(&mut stages).await;
    site.assert_equal(&cloud).await;
}

// Sentence 12. Long transactions hold all four segments: further ones are made, used and trimmed.
#[tokio::test]
async fn segments_that_are_held_are_passed_over() {
    let (cloud, site) = Site::captured("held", TABLE, &things("")).await;
    let drain = site.drain();
    let mut stages = drain.open().await.unwrap();
    let mut open = Vec::new();
    let mut id = 0;
    let now = "select coalesce(pg_sequence_last_value('cloud_sync.state'), 0) & 65535";
    for turn in 0..6 {
        let client = connect(&site.database_url).await;
        client
            .batch_execute(&format!(
                "begin; insert into thing values ({}, 'open')",
                1000 + turn
            ))
            .await
            .unwrap();
        open.push(client);
        site.run(&format!(
            "insert into thing select n, 'text' from generate_series({}, {}) n; select cloud_sync.rotate(0)",
            id + 1,
            id + 10
        ))
        .await;
        id += 10;
        drained(&mut stages).await;
    }
    assert!(number(&site.client, now).await >= 4);
    let held = "select count(*) from cloud_sync.outbox";
    assert!(number(&site.client, held).await > 0);
    for client in open {
        client.batch_execute("commit").await.unwrap();
    }
    drained(&mut stages).await;
    site.assert_equal(&cloud).await;
    // Nothing holds them any more.
    site.run("insert into thing values (5000, 'last')").await;
    drained(&mut stages).await;
    assert_eq!(number(&site.client, held).await, 0);
}
