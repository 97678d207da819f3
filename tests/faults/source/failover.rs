//! A standby takes over, or an older state of the database comes back.

use super::{TURN, compared, garden, renewed};
use crate::support::machine::{Load, Machine, reach};
use crate::support::oracle::Tally;
use crate::support::postgres::free_port;
use crate::support::process::Daemon;
use crate::support::site::Cloud;

/// What the database forgets later: an insert, an update and a delete that were delivered.
const FORGOTTEN: &str = "insert into pot values (1001, 'forgotten'), (1002, 'forgotten'); \
     update pot set label = 'forgotten' where pot_id = 1; delete from pot where pot_id = 2; \
     insert into leaf values (1, 9, 'forgotten')";

/// What it takes instead: more changes than were forgotten, so that each of their positions is given again.
const INSTEAD: &str = "update pot set weight = 5 where pot_id = 3; \
     update pot set weight = 6 where pot_id = 3; \
     insert into pot select n, 'instead' from generate_series(1002, 1100) n; \
     delete from pot where pot_id = 4";

const BEFORE: &str = "insert into pot select n, 'before' from generate_series(1, 20) n; \
     insert into leaf select pot_id, 1, 'before' from pot";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_standby_takes_over_under_load_and_nothing_is_lost() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("standby").await;
    let machine = Machine::start("");
    let mut site = garden(machine.database("site").await, &cloud).await;
    machine.replica("standby");
    let root = reach(&machine.url("postgres")).await;
    for sql in [
        "alter system set synchronous_standby_names = '*'",
        "select pg_reload_conf()",
    ] {
        root.batch_execute(sql).await.unwrap();
    }
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    let load = Load::start(&site.database_url, TURN);
    load.turns(60).await;
    // When the primary dies and its standby answers in its place
    machine.down("main", "immediate");
    tally.kills += 1;
    machine.promote("standby");
    machine.down("standby", "fast");
    machine.up("standby", "");
    // then the replicator continues.
    load.turns(60).await;
    load.end().await;
    site.client = reach(&site.database_url).await;
    daemon.caught_up().await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lacks_what_was_delivered_is_noticed_although_it_has_moved_on() {
    for survives in [true, false] {
        let mut tally = Tally::default();
        let cloud = Cloud::start("behind").await;
        let machine = Machine::start("");
        let mut site = garden(machine.database("site").await, &cloud).await;
        site.run(BEFORE).await;
        let daemon = Daemon::of(&site, "store");
        let process = daemon.start();
        daemon.caught_up().await;
        // Given a standby that was cut off
        machine.replica("standby");
        machine.down("standby", "fast");
        // and changes that reached the cloud and not the standby,
        site.run(FORGOTTEN).await;
        daemon.caught_up().await;
        let survivor = if survives {
            Some(process)
        } else {
            process.kill();
            None
        };
        // when the standby takes over, and gives the same positions to other changes before the replicator is
        // back,
        machine.down("main", "immediate");
        tally.kills += 1;
        machine.up_at("standby", free_port(), "");
        machine.promote("standby");
        machine.down("standby", "fast");
        let elsewhere = free_port();
        machine.up_at("standby", elsewhere, "");
        reach(&machine.url_at(elsewhere, "postgres", "site"))
            .await
            .batch_execute(INSTEAD)
            .await
            .unwrap();
        machine.down("standby", "fast");
        machine.up("standby", "");
        // then it notices, and brings the cloud to the new primary's state.
        let process = survivor.unwrap_or_else(|| daemon.start());
        compared(&daemon, &mut site, &cloud).await;
        tally.judge(&site, &cloud).await;
        assert!(process.terminate().await.success(), "{}", daemon.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_restored_in_place_is_noticed_although_it_has_moved_on() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("restored").await;
    let machine = Machine::start("");
    let mut site = garden(machine.database("site").await, &cloud).await;
    site.run(BEFORE).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    // Given a copy of the server's files, whose timeline is the server's own
    machine.down("main", "fast");
    machine.run("cp -a main older");
    machine.up("main", "");
    let process = daemon.start();
    site.client = reach(&site.database_url).await;
    site.run(FORGOTTEN).await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    // when it is put back, and moves on before the replicator starts,
    machine.down("main", "fast");
    machine.up("older", "");
    tally.faults += 1;
    reach(&site.database_url)
        .await
        .batch_execute(INSTEAD)
        .await
        .unwrap();
    // then that is noticed, and the cloud brought to what the database holds.
    let process = daemon.start();
    compared(&daemon, &mut site, &cloud).await;
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_restored_under_the_same_name_is_noticed_and_the_remedy_works() {
    for restore in [
        "dropdb -f -h 127.0.0.1 -p $P -U postgres site && createdb -h 127.0.0.1 -p $P -U postgres site \
         && psql -qX -v ON_ERROR_STOP=1 -h 127.0.0.1 -p $P -U postgres -d site -f site.sql",
        "createdb -h 127.0.0.1 -p $P -U postgres other \
         && psql -qX -v ON_ERROR_STOP=1 -h 127.0.0.1 -p $P -U postgres -d other -f site.sql \
         && dropdb -f -h 127.0.0.1 -p $P -U postgres site \
         && psql -qX -h 127.0.0.1 -p $P -U postgres -d postgres -c 'alter database other rename to site'",
    ] {
        let mut tally = Tally::default();
        let cloud = Cloud::start("dump").await;
        let machine = Machine::start("");
        let mut site = garden(machine.database("site").await, &cloud).await;
        site.run(BEFORE).await;
        let daemon = Daemon::of(&site, "store");
        let process = daemon.start();
        daemon.caught_up().await;
        let at_port = |command: &str| command.replace("$P", &machine.port().to_string());
        machine.run(&at_port(
            "pg_dump -h 127.0.0.1 -p $P -U postgres -d site -f site.sql",
        ));
        site.run(FORGOTTEN).await;
        daemon.caught_up().await;
        machine.run(&at_port(restore));
        tally.faults += 1;
        site.client = reach(&site.database_url).await;
        site.run(INSTEAD).await;
        // `check` says it first, as the rest follows from it.
        let checked = daemon.ask(&["check"]);
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.contains("init --new-epoch"), "{checked}");
        println!("{checked}");
        let process = renewed(&daemon, process, &mut site, &cloud).await;
        tally.judge(&site, &cloud).await;
        assert!(process.terminate().await.success(), "{}", daemon.log());
    }
}
