//! H3, H4, H5, sentences 9 and 10: the site's database, the cloud or the drain's session goes back, or there
//! are two of them.

use std::process::Command;

use cloud_sync::drain::DrainStep;
use cloud_sync::error::{Error, Kind};
use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::install;

use super::{TABLE, drained, elsewhere, held, things};
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::machine::{Machine, reach};
use crate::support::oracle::assert_never_back;
use crate::support::postgres::{Server, binaries, free_port};
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, Site, connect, until_whole};
use crate::support::sql::{number, texts, until, until_some};

// H3 i and ii. A commit, and a later number that nothing wrote to the disk, are in an accepted checkpoint;
// the server crashes, and gives the number again. With `synchronous_commit = off` the commit itself is not on
// the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_a_crash_gives_again_hide_no_change() {
    for commit in ["on", "off"] {
        let server = Server::with(&["wal_writer_delay=10s", "full_page_writes=off", "autovacuum=off"]);
        let cloud = Cloud::start("crash").await;
        let mut site = Site::bare_on(&server, "crash", &cloud.url, KEY, TABLE, &things("")).await;
        site.init().await;
        let daemon = Daemon::of(&site, "store");
        // Given a replicator that dies before its second mirror
        let process = daemon.start_to_abort("before the mirror#2", &[]);
        site.run("insert into thing values (1, 'first')").await;
        until(
            &site.client,
            "select coalesce(max((body::json->>'serial')::int), 0) > 0 from cloud_sync.checkpoint",
        )
        .await;
        // and a window whose numbers are not on the disk
        site.run(&format!(
            "set synchronous_commit = {commit}; begin; insert into thing values (2, 'second'); commit; \
             begin; insert into thing values (3, 'never'); rollback"
        ))
        .await;
        process.aborted().await;
        // when the server crashes, and gives them to other changes,
        server.restart("QUIT");
        site.client = reach(&site.database_url).await;
        site.run("insert into thing values (4, 'after'); insert into thing values (5, 'after')")
            .await;
        // then these arrive, and what the crash took back was never sent.
        let process = daemon.start();
        daemon.caught_up().await;
        site.assert_equal(&cloud).await;
        assert!(process.terminate().await.success());
    }
}

// H3 iii. A standby that was cut off is promoted; it gives numbers of delivered changes to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_that_lacks_changes_is_compared_without_asking_anybody() {
    let cloud = Cloud::start("promoted").await;
    let machine = Machine::start("");
    let url = machine.database("site").await;
    let mut site = Site::at(url, &cloud.url, KEY, TABLE, &things("")).await;
    site.init().await;
    site.run("insert into thing select n, 'before' from generate_series(1, 9) n")
        .await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    daemon.caught_up().await;
    machine.replica("standby");
    machine.down("standby", "fast");
    // Given changes that reached the cloud and not the standby
    site.run(
        "insert into thing values (10, 'lost'); update thing set label = 'lost' where id = 1; \
         delete from thing where id = 2",
    )
    .await;
    daemon.caught_up().await;
    process.kill();
    // when that takes over and writes others,
    machine.down("main", "immediate");
    let port = free_port();
    machine.up_at("standby", port, "");
    machine.promote("standby");
    machine.down("standby", "fast");
    machine.up("standby", "");
    site.client = reach(&site.database_url).await;
    site.run("insert into thing values (11, 'instead'); update thing set label = 'instead' where id = 3")
        .await;
    // then the cloud ends at its state.
    let process = daemon.start();
    daemon.caught_up().await;
    until(
        &site.client,
        "select count(*) = 0 from cloud_sync.entity where gap is not null",
    )
    .await;
    daemon.caught_up().await;
    site.assert_equal(&cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

// H4. The cloud is restored from a backup: what lay between is in no later window. One row is older than its
// retention.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_that_went_back_is_compared_with_all_rows() {
    let tables = "create table thing (id bigint primary key, label text, \
         created_at timestamptz not null default now())";
    let config = things("retention = { column = \"created_at\", days = 30 }\ndeletes = \"propagate\"");
    let (mut cloud, site) = Site::captured("backup", tables, &config).await;
    let running = site.replicate_monitoring_drift();
    site.run("insert into thing select n, 'before', now() - interval '60 days' from generate_series(1, 9) n")
        .await;
    running.caught_up().await;
    // Given a backup of the cloud, and changes after it
    cloud.away().await;
    let root = connect(&Server::get().url("postgres")).await;
    let name = cloud.database_url.rsplit('/').next().unwrap();
    root.batch_execute(&format!("create database {name}_copy template {name}"))
        .await
        .unwrap();
    cloud.back().await;
    site.run(
        "update thing set label = 'after' where id = 1; delete from thing where id = 2; \
         insert into thing values (10, 'after')",
    )
    .await;
    running.caught_up().await;
    // when it takes the cloud's place,
    cloud.away().await;
    cloud.database_url = format!("{}_copy", cloud.database_url);
    cloud.set_database(cloud.database_url.clone());
    cloud.back().await;
    site.run("insert into thing values (11, 'later')").await;
    // then the cloud gets all of it again, and loses what the site has not.
    running.caught_up().await;
    until_whole(&site, &running).await;
    site.assert_equal(&cloud).await;
    assert_eq!(
        held(&cloud, "select id::text || label from cloud.things order by id")
            .await
            .len(),
        10
    );
    running.end().await;
}

// H5. The cloud takes a batch, no answer comes, and the drain's sessions are killed before the commit; a row
// changes in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_read_again_goes_under_a_new_term() {
    let cloud = Cloud::start("again").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::bare("again", &fault_proxy.url(), KEY, TABLE, &things("")).await;
    site.init().await;
    let running = site.replicate();
    site.run("insert into thing values (1, 'first')").await;
    running.caught_up().await;
    let term = number(&site.client, "select term from cloud_sync.term").await;
    fault_proxy.fault(Fault::cut_after_store().on("changes"));
    site.run("update thing set label = 'second' where id = 1").await;
    let there = connect(&cloud.database_url).await;
    until(&there, "select label = 'second' from cloud.things").await;
    site.run("update thing set label = 'third' where id = 1").await;
    site.run(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() \
         and application_name like 'cloud-sync %'",
    )
    .await;
    fault_proxy.clear_faults();
    until(&there, "select label = 'third' from cloud.things").await;
    running.caught_up().await;
    assert!(number(&site.client, "select term from cloud_sync.term").await > term);
    site.assert_equal(&cloud).await;
    assert_never_back(&cloud).await;
    running.end().await;
}

fn assert_identity(stopped: Result<impl std::fmt::Debug, Error>) {
    let error = stopped.expect_err("it sends");
    assert_eq!(error.kind(), Kind::Identity, "{error}");
}

// Sentence 10. A database copied by `template` has the outbox, and is not the site.
#[tokio::test]
async fn a_database_copied_by_template_does_not_send() {
    let (_cloud, mut site) = Site::captured("template", TABLE, &things("")).await;
    let drain = site.drain();
    site.run("insert into thing values (1, 'one')").await;
    drain.drain_all().await.unwrap();
    let root = connect(&Server::get().url("postgres")).await;
    let name = site.database_url.rsplit('/').next().unwrap().to_owned();
    site.client = connect(&Server::get().url("postgres")).await;
    until(
        &root,
        &format!("select count(*) = 0 from pg_stat_activity where datname = '{name}'"),
    )
    .await;
    root.batch_execute(&format!("create database {name}_copy template {name}"))
        .await
        .unwrap();
    let mut copy = elsewhere(&drain);
    copy.database_url = format!("{}_copy", site.database_url).into();
    connect(&format!("{}_copy", site.database_url))
        .await
        .batch_execute("insert into thing values (2, 'of the copy')")
        .await
        .unwrap();
    assert_identity(copy.drain_once().await);
    // The site goes on.
    site.client = connect(&site.database_url).await;
    site.run("insert into thing values (2, 'of the site')").await;
    drain.drain_all().await.unwrap();
    assert_identity(copy.drain_once().await);
}

// Sentence 10. A machine copied by its files has the site's identity and its last nonce: whoever sends first
// goes on alone.
#[tokio::test]
async fn of_two_machines_with_one_identity_only_the_first_to_send_goes_on() {
    for first in ["site", "copy"] {
        let cloud = Cloud::start("machines").await;
        let machine = Machine::start("");
        let url = machine.database("site").await;
        let mut site = Site::at(url, &cloud.url, KEY, TABLE, &things("")).await;
        site.init().await;
        let drain = site.drain();
        site.run("insert into thing values (1, 'one')").await;
        drain.drain_all().await.unwrap();
        machine.down("main", "fast");
        machine.run("cp -a main copy");
        machine.up("main", "");
        let port = free_port();
        machine.up_at("copy", port, "");
        site.client = reach(&site.database_url).await;
        let mut copy = elsewhere(&drain);
        let copied = machine.url_at(port, "postgres", "site");
        copy.database_url = copied.clone().into();
        reach(&copied)
            .await
            .batch_execute("insert into thing values (2, 'of the copy')")
            .await
            .unwrap();
        site.run("insert into thing values (2, 'of the site')").await;
        let (one, other) = if first == "site" {
            (&drain, &copy)
        } else {
            (&copy, &drain)
        };
        assert_eq!(one.drain_once().await.unwrap(), DrainStep::Delivered);
        for _ in 0..2 {
            assert_identity(other.drain_once().await);
        }
        let sent = format!("of the {first}");
        assert_eq!(
            held(&cloud, "select label from cloud.things where id = 2").await,
            [sent]
        );
    }
}

// Sentence 9. `pg_restore --clean` into the same database: server and database are the same, the outbox is
// another one.
#[tokio::test]
async fn an_outbox_that_was_restored_in_place_is_noticed() {
    let (_cloud, site) = Site::captured("in_place", TABLE, &things("")).await;
    let drain = site.drain();
    site.run("insert into thing values (1, 'one')").await;
    drain.drain_all().await.unwrap();
    let dump = site.folder.path().join("dump");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(binaries().join(program))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let file = dump.to_str().unwrap();
    run("pg_dump", &["-Fc", "-f", file, "-d", &site.database_url]);
    run("pg_restore", &["--clean", "-d", &site.database_url, file]);
    assert_identity(drain.drain_once().await);
}

// Sentence 9. After pg_upgrade the server's identifier is another one and transaction numbers go on: «it is
// the same outbox».
#[tokio::test]
async fn an_outbox_that_moved_with_its_numbers_keeps_its_touches() {
    let (cloud, site) = Site::captured("upgraded", TABLE, &things("")).await;
    let drain = site.drain();
    site.run("insert into thing values (1, 'one'), (2, 'two')").await;
    drain.drain_all().await.unwrap();
    let epoch = number(&site.client, "select epoch from cloud_sync.identity").await;
    site.run(
        "delete from thing where id = 1; update cloud_sync.identity set system_id = 'the server before'",
    )
    .await;
    assert_identity(drain.drain_once().await);
    let url = site.settings.require_database_url().unwrap();
    install::init(url, &site.settings.catalogue, OutboxDeclaration::Same)
        .await
        .unwrap();
    let mut stages = drain.open().await.unwrap();
    drained(&mut stages).await;
    site.assert_equal(&cloud).await;
    assert_eq!(
        number(&site.client, "select epoch from cloud_sync.identity").await,
        epoch
    );
}

// A term begins, and writes the mirror, while the mirror of the checkpoint before it has not been written
// yet: that one must not come over it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_mirror_is_not_written_over_a_newer_one() {
    let cloud = Cloud::start("older_mirror").await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::bare("older_mirror", &fault_proxy.url(), KEY, TABLE, &things("")).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    // Given a checkpoint of the first term, whose mirror follows within a second,
    let process = daemon.start_to_abort("after the mirror", &[]);
    let there = connect(&cloud.database_url).await;
    site.run("insert into thing values (1, 'one')").await;
    until_some(&there, "select count(*) = 1 from cloud.things").await;
    // and a second term, whose first batch gets no answer that counts,
    fault_proxy.fault(
        Fault::answer(
            409,
            "application/json",
            r#"{"error": "out of turn", "code": "out-of-turn"}"#,
        )
        .on("changes")
        .times(1),
    );
    fault_proxy.fault(Fault::status(503).on("changes"));
    site.run("insert into thing values (2, 'two')").await;
    process.aborted().await;
    // then the mirror is that of the last term.
    let terms = "select distinct of.term::text from cloud_sync.term t, cloud_sync.checkpoint c, \
         unnest(array[t.term, c.term, (c.body::json->>'term')::bigint]) of (term)";
    let terms = texts(&site.client, terms).await;
    assert_eq!(terms.len(), 1, "{terms:?}");
    fault_proxy.clear_faults();
    let process = daemon.start();
    daemon.caught_up().await;
    site.assert_equal(&cloud).await;
    assert!(process.terminate().await.success());
}
