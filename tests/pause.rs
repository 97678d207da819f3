//! Pauses: what is paused is not sent, nothing is lost, and all of it arrives in its last state after the
//! resume, whatever happened in between.

use cloud_sync::StatusReport;
use cloud_sync::control::status::ReplicatorState;
use tokio_postgres::Client;

use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};
use crate::support::sql::{number, until};

const TABLES: &str =
    "create table t (id int primary key, v text); create table u (id int primary key, v text)";

fn entities() -> String {
    [entity("x", "t", &["id"], ""), entity("y", "u", &["id"], "")].concat()
}

/// A site and its cloud, and a session with the cloud's database.
struct Paused {
    cloud: Cloud,
    site: Site,
    there: Client,
    daemon: Daemon,
}

impl Paused {
    async fn start(hint: &str) -> Self {
        let cloud = Cloud::start(hint).await;
        let site = Site::bare(hint, &cloud.url, KEY, TABLES, &entities()).await;
        site.init().await;
        Self {
            there: connect(&cloud.database_url).await,
            daemon: Daemon::of(&site, "store"),
            cloud,
            site,
        }
    }

    async fn ask(&self, arguments: &[&str]) {
        let status = self.daemon.begin(arguments).ended(LIMIT).await;
        assert!(status.success(), "{arguments:?}: {}", self.daemon.log());
    }

    async fn until(&self, what: &str, so: impl Fn(&StatusReport) -> bool) -> StatusReport {
        self.daemon.until(what, LIMIT, so).await
    }

    /// Waits until the replicator knows whether the entity `x` is paused.
    async fn until_obeyed(&self, is_paused: bool) {
        let line = format!("cloud_sync_entity_paused{{entity=\"x\"}} {}", u8::from(is_paused));
        let url = format!("http://{}/metrics", self.daemon.listen());
        let start = std::time::Instant::now();
        loop {
            let metrics = reqwest::get(&url).await.unwrap().text().await.unwrap();
            if metrics.lines().any(|other| other == line) {
                return;
            }
            assert!(start.elapsed() < LIMIT, "no {line} in\n{metrics}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn until_there(&self, sql: &str) {
        until(&self.there, sql).await;
    }
}

fn is_paused(status: &StatusReport) -> bool {
    status.state == ReplicatorState::Paused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_site_sends_nothing_keeps_all_and_stays_paused_through_a_kill() {
    let paused = Paused::start("pause_all").await;
    let process = paused.daemon.start();
    paused.site.run("insert into t values (1, 'first')").await;
    paused.daemon.caught_up().await;
    paused.until_there("select count(*) = 1 from cloud.x").await;

    // Paused, nothing is sent, though changes are captured, and nothing is alarming.
    paused.ask(&["pause"]).await;
    let status = paused.until("paused", is_paused).await;
    let pause = status.paused.all.expect("since when, and by whom");
    assert!(!pause.by.is_empty());
    paused
        .site
        .run("update t set v = 'second' where id = 1; insert into t values (2, 'gone'); delete from t where id = 2")
        .await;
    paused
        .until("changes wait", |status| {
            is_paused(status) && status.lag.is_some_and(|lag| lag.changes == 3)
        })
        .await;
    let (health, text) = paused.daemon.healthz().await;
    assert!(
        health == 200 && text.contains("replication is paused since"),
        "{text}"
    );
    let why = paused.daemon.ask(&["why", "x", "1"]);
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(
        why.contains("Replication is paused") && why.contains("cloud-sync resume"),
        "{why}"
    );
    let synced = paused.daemon.ask(&["sync"]);
    let refusal = String::from_utf8_lossy(&synced.stderr).into_owned();
    assert!(
        !synced.status.success() && refusal.contains("replication is paused"),
        "{refusal}"
    );

    // A kill and a restart change nothing of it, since when included.
    process.kill();
    paused.site.run("insert into t values (3, 'third')").await;
    let process = paused.daemon.start();
    let again = paused
        .until("paused after the restart", |status| {
            is_paused(status) && status.lag.is_some_and(|lag| lag.changes == 4)
        })
        .await;
    assert_eq!(again.paused.all.as_ref(), Some(&pause));
    assert_eq!(
        number(&paused.there, "select count(*) from cloud.x where v = 'first'").await,
        1
    );
    assert_eq!(number(&paused.there, "select count(*) from cloud.x").await, 1);

    // Resumed, everything arrives in its last state.
    paused.ask(&["resume"]).await;
    paused.daemon.caught_up().await;
    paused
        .until_there("select count(*) = 2 and bool_and(v in ('second', 'third')) from cloud.x")
        .await;
    let status = paused.daemon.status().await.unwrap();
    assert!(
        status.paused.all.is_none() && status.capture.is_empty(),
        "{status:#?}"
    );
    assert!(process.terminate().await.success());
    paused.site.assert_equal(&paused.cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_entity_waits_alone_and_arrives_in_its_last_state() {
    let paused = Paused::start("pause_entity").await;
    let process = paused.daemon.start();
    paused
        .site
        .run("insert into t select n, 'old' from generate_series(1, 5) n; insert into u values (1, 'old')")
        .await;
    paused.daemon.caught_up().await;
    paused.until_there("select count(*) = 5 from cloud.x").await;

    // Given a paused entity, others flow on, and it is not called broken.
    paused.ask(&["pause", "--entity", "x"]).await;
    paused.until_obeyed(true).await;
    // The round that was on when it was paused has ended when the other entity's next change is there.
    paused.site.run("update u set v = 'between'").await;
    paused
        .until_there("select count(*) = 1 from cloud.y where v = 'between'")
        .await;
    paused
        .site
        .run(
            "update t set v = 'new' where id <= 2; delete from t where id = 3; update t set id = 40 where id = 4;
             insert into t values (6, 'six'); update u set v = 'new'",
        )
        .await;
    paused
        .until_there("select count(*) = 1 from cloud.y where v = 'new'")
        .await;
    let status = paused.daemon.caught_up().await;
    assert!(status.capture.is_empty(), "{:#?}", status.capture);
    assert_eq!(paused.daemon.health().await, 200);
    let held = "select count(*) from cloud.x where v = 'old'";
    assert_eq!(number(&paused.there, held).await, 5);
    let why = paused.daemon.ask(&["why", "x", "6"]);
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(
        why.contains("Its entity is paused") && why.contains("cloud-sync resume --entity x"),
        "{why}"
    );
    // A sync leaves it out, unless it is named; then it says why.
    paused.ask(&["sync"]).await;
    assert_eq!(number(&paused.there, held).await, 5);
    let named = paused.daemon.ask(&["sync", "--entity", "x"]);
    assert_eq!(named.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&named.stdout).contains("it is paused since"));

    // A kill while it is paused loses nothing of what was kept, and more comes.
    process.kill();
    let process = paused.daemon.start();
    paused
        .site
        .run("update t set v = 'newest' where id = 1; update u set v = 'newest'")
        .await;
    paused
        .until_there("select count(*) = 1 from cloud.y where v = 'newest'")
        .await;
    paused.daemon.caught_up().await;
    assert_eq!(number(&paused.there, held).await, 5);

    // Resumed, each row is as it is at the site.
    paused.ask(&["resume", "--entity", "x"]).await;
    let rows = "select string_agg(id || ' ' || v, ',' order by id) = '1 newest,2 new,5 old,6 six,40 old' \
                from cloud.x";
    paused.until_there(rows).await;
    until(
        &paused.site.client,
        "select count(*) = 0 from cloud_sync.parked_key",
    )
    .await;
    assert!(process.terminate().await.success());
    paused.site.assert_equal(&paused.cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_files_stop_amid_an_upload_while_rows_flow() {
    let cloud = Cloud::start("pause_files").await;
    let proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::school("pause_files", &proxy.url(), KEY).await;
    site.init().await;
    std::fs::create_dir_all(site.media().join("slips")).unwrap();
    for name in ["a.jpg", "b.jpg"] {
        std::fs::write(site.media().join("slips").join(name), name).unwrap();
    }
    // Given an upload that gets no answer
    proxy.fault(Fault::stall().on("upload"));
    let running = site.replicate();
    site.run(
        "insert into tbl_faculty (faculty_fname) values ('Ada');
         insert into tbl_leave (faculty_id, leave_slip_image) values (1, 'slips/a.jpg')",
    )
    .await;
    until(&site.client, "select count(*) = 1 from cloud_sync.media").await;
    // when files are paused, rows flow on, and no file is sent, not even when the cloud takes them again.
    let daemon = Daemon::of(&site, "commands");
    assert!(daemon.begin(&["pause", "--files"]).ended(LIMIT).await.success());
    running
        .until("paused", |status| status.paused.files.is_some())
        .await;
    proxy.clear_faults();
    site.run("insert into tbl_leave (faculty_id, leave_slip_image) values (1, 'slips/b.jpg')")
        .await;
    let status = running
        .until("both rows there, and both files waiting", |status| {
            status.files.waiting == 2 && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    assert_eq!(status.files.uploaded, 0);
    let there = connect(&cloud.database_url).await;
    assert_eq!(number(&there, "select count(*) from cloud.leaves").await, 2);
    let why = daemon.ask(&["files", "why", "slips/a.jpg"]);
    assert!(String::from_utf8_lossy(&why.stdout).contains("files are paused since"));
    // Resumed, they go.
    assert!(daemon.begin(&["resume", "--files"]).ended(LIMIT).await.success());
    running
        .until("both uploaded", |status| status.files.uploaded == 2)
        .await;
    running.caught_up().await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_while_the_cloud_is_away_holds_when_it_is_back() {
    let mut paused = Paused::start("pause_away").await;
    let process = paused.daemon.start();
    paused
        .site
        .run("insert into t values (1, 'first'); insert into u values (1, 'first')")
        .await;
    paused.daemon.caught_up().await;
    paused.until_there("select count(*) = 1 from cloud.y").await;
    // Given batches that are tried again and again,
    paused.cloud.away().await;
    paused
        .site
        .run("update t set v = 'second'; update u set v = 'second'")
        .await;
    paused
        .until("the cloud is away", |status| {
            status.state == ReplicatorState::BackingOff
        })
        .await;
    // when an entity of theirs is paused, and the cloud is back,
    paused.ask(&["pause", "--entity", "x"]).await;
    paused.until_obeyed(true).await;
    paused.cloud.back().await;
    // then the other one's changes arrive, and its own do not.
    paused
        .until_there("select count(*) = 1 from cloud.y where v = 'second'")
        .await;
    paused.daemon.caught_up().await;
    assert_eq!(
        number(&paused.there, "select count(*) from cloud.x where v = 'first'").await,
        1
    );
    paused.ask(&["resume", "--entity", "x"]).await;
    paused
        .until_there("select count(*) = 1 from cloud.x where v = 'second'")
        .await;
    assert!(process.terminate().await.success());
}
