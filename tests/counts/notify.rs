//! Whom writers wake.

use std::time::Instant;

use futures::StreamExt;
use tokio_postgres::{AsyncMessage, NoTls};

use super::rooms;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};
use crate::support::tcp_proxy::{TcpProxy, Trouble};

/// What wakes a replicator that sleeps.
const WAKING: usize = 1;

/// What writers send to one that is awake.
const AWAKE: usize = 0;

#[tokio::test]
async fn a_storm_of_commits_notifies_no_one_while_the_replicator_is_awake() {
    let cloud = Cloud::start("storm_of_commits").await;
    let proxy = TcpProxy::start(cloud.address()).await;
    let site = Site::at(
        crate::support::postgres::Server::get()
            .database("storm_of_commits_site")
            .await,
        &proxy.url(),
        KEY,
        crate::support::site::SCHOOL,
        "[delivery]\nbatch_rows = 10\n",
    )
    .await;
    site.init().await;
    let (listener, mut connection) = tokio_postgres::connect(&site.database_url, NoTls).await.unwrap();
    let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(_) = message {
                let _ = heard.send(());
            }
        }
    });
    listener.batch_execute("listen cloud_sync").await.unwrap();
    let replicator = site.replicate();
    let sleeps = async || -> bool {
        site.client
            .query_one("select pg_sequence_last_value('cloud_sync.state') > 65535", &[])
            .await
            .unwrap()
            .get(0)
    };
    let until = async |asleep: bool| {
        let start = Instant::now();
        while sleeps().await != asleep {
            assert!(start.elapsed() < LIMIT, "not asleep: {asleep}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    // Given a replicator that sleeps, and is woken by more than it can read while its cloud holds its answers
    // back,
    replicator.caught_up().await;
    until(true).await;
    proxy.set(Trouble::HoldAnswers);
    rooms(&site, 100).await;
    until(false).await;
    listener.batch_execute("select").await.unwrap();
    let woken = std::iter::from_fn(|| hearing.try_recv().ok()).count();
    assert_eq!(woken, WAKING);
    // when writers commit all at once
    let writers = (0..8).map(|writer| {
        let url = site.database_url.clone();
        async move {
            let client = connect(&url).await;
            for nth in 0..50 {
                client
                    .execute(
                        "insert into tbl_room (room_no) values ($1)",
                        &[&format!("W{writer}-{nth}")],
                    )
                    .await
                    .unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    // then nobody is notified: a notification would have come before the answer of the listener's next query.
    listener.batch_execute("select").await.unwrap();
    let notified = std::iter::from_fn(|| hearing.try_recv().ok()).count();
    assert_eq!(notified, AWAKE);
    assert!(!sleeps().await);
    // And all arrives.
    proxy.set(Trouble::None);
    replicator.caught_up().await;
    site.assert_equal(&cloud).await;
    replicator.end().await;
}
