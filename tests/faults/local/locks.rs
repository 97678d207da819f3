//! A role without rights in our schema takes every lock that it can.

use std::time::Duration;

use cloud_sync::control::status::ReplicatorState;

use crate::faults::attack::takeover::sources;
use crate::support::commit_latency;
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

/// What a site's settings must hold for health to fail soon.
const SOON: &str = "control.lag_limit=1s";

/// The number of the advisory lock that sqlx takes in this database: see its `generate_lock_id`.
fn migration_lock(database: &str) -> i64 {
    let crc = database.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    });
    0x3d32_ad9e * i64::from(!crc)
}

async fn healthz(daemon: &Daemon) -> (u16, String) {
    let answer = reqwest::get(format!("http://{}/healthz", daemon.listen()))
        .await
        .unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Waits until `/healthz` answers so, with these words.
async fn until_health(daemon: &Daemon, status: u16, words: &[&str]) {
    let start = std::time::Instant::now();
    loop {
        let (answered, text) = healthz(daemon).await;
        if answered == status && words.iter().all(|word| text.contains(word)) {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{answered} {text}\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_another_role_hold_up_its_own_entity_alone_and_are_told() {
    let role = format!("holder_{}", std::process::id());
    let mut cloud = Cloud::start("holder").await;
    let tables = format!(
        "create role {role} login; create table own (id int primary key); \
         create table other (id int primary key);
         alter table own owner to {role}; grant select on other to {role}"
    );
    let config = entity("own", "own", &["id"], "") + &entity("other", "other", &["id"], "");
    let site = Site::bare("holder", &cloud.url, KEY, &tables, &config).await;
    // Given that the sources take no advisory lock, and a role that holds the one that sqlx would take for
    // migrations,
    for text in ["src", "sql", "migrations"].into_iter().flat_map(sources) {
        assert!(
            !text.contains("pg_advisory") && !text.contains("pg_try_advisory"),
            "{text}"
        );
    }
    let url = |database: &str| database.replace("postgres@", &format!("{role}@"));
    let mut holders = Vec::new();
    cloud.away().await;
    for database in [&site.database_url, &cloud.database_url] {
        let holder = connect(&url(database)).await;
        let (_, name) = database.rsplit_once('/').unwrap();
        let taken = format!("select pg_advisory_lock({})", migration_lock(name));
        holder.batch_execute(&taken).await.unwrap();
        holders.push(holder);
    }
    cloud.back().await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_with(&[SOON]);
    daemon.caught_up().await;
    site.run("insert into own values (0); insert into other values (0)")
        .await;
    daemon
        .until("delivered", LIMIT, |status| status.counts.accepted == 2)
        .await;
    let holder = connect(&url(&site.database_url)).await;
    holder
        .batch_execute(
            "begin; lock table own in access exclusive mode; select from other; \
             lock table other in access share mode",
        )
        .await
        .unwrap();
    // when rows of both are written (those of its own in a transaction of their own),
    holder.batch_execute("insert into own values (1)").await.unwrap();
    site.run("insert into other values (1)").await;
    let there = connect(&cloud.database_url).await;
    let arrived = async |sql: &str, count: i64| {
        let start = std::time::Instant::now();
        while there.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) != count {
            assert!(start.elapsed() < LIMIT, "{sql}: {}", daemon.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // then the other entity's arrive; its own arrive once it has committed,
    arrived("select count(*) from cloud.other", 2).await;
    holder.batch_execute("commit").await.unwrap();
    arrived("select count(*) from cloud.own", 2).await;
    // and of one that is locked after its rows were written health and status tell what is wrong and what to
    // do.
    let second = connect(&url(&site.database_url)).await;
    holder
        .batch_execute("begin; lock table own in share row exclusive mode; insert into own values (2)")
        .await
        .unwrap();
    let taken = tokio::spawn(async move {
        second
            .batch_execute("begin; lock table own in access exclusive mode")
            .await
            .unwrap();
        second
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    holder.batch_execute("commit").await.unwrap();
    let second = taken.await.unwrap();
    site.run("insert into other values (2)").await;
    arrived("select count(*) from cloud.other", 3).await;
    until_health(&daemon, 503, &["own", "lock", "pg_terminate_backend"]).await;
    let status = daemon
        .until("told", LIMIT, |status| {
            status.capture.iter().any(|trouble| trouble.entity == "own")
        })
        .await;
    println!("{:?}", status.capture);
    let check = daemon.ask(&["check"]);
    assert!(!check.status.success(), "{check:?}");
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(
        text.contains("own") && text.contains("pg_terminate_backend"),
        "{text}"
    );
    commit_latency::print_commit_latency("a role that holds every lock", &site, &cloud, "other", "other")
        .await;
    second.batch_execute("commit").await.unwrap();
    arrived("select count(*) from cloud.own", 3).await;
    until_health(&daemon, 200, &[]).await;
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_fails_once_the_oldest_change_is_too_old_whatever_holds_it_up() {
    let server = Server::with(&[]);
    let mut cloud = Cloud::start_on(&server, "overdue").await;
    let site = Site::bare_on(
        &server,
        "overdue",
        &cloud.url,
        KEY,
        "create table t (id int primary key)",
        &entity("x", "t", &["id"], ""),
    )
    .await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_with(&[SOON]);
    daemon.caught_up().await;
    until_health(&daemon, 200, &[]).await;
    // A cloud that is away.
    cloud.away().await;
    site.run("insert into t values (1)").await;
    until_health(
        &daemon,
        503,
        &["changes wait, and the oldest is", "control.lag_limit is 1 s"],
    )
    .await;
    cloud.back().await;
    daemon.caught_up().await;
    until_health(&daemon, 200, &[]).await;
    // A reader that hangs in a lock of our own tables.
    site.run("begin; lock table cloud_sync.outbox in access exclusive mode; insert into t values (2)")
        .await;
    until_health(&daemon, 503, &["control.lag_limit is 1 s"]).await;
    site.run("commit").await;
    daemon.caught_up().await;
    until_health(&daemon, 200, &[]).await;
    assert_eq!(daemon.status().await.unwrap().state, ReplicatorState::Replicating);
    assert!(process.terminate().await.success());
}
