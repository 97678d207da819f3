//! `why`: a fault is planted, and the command tells it as the one reason, with the command that helps.

use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

const TABLES: &str = "
    create table room (id bigint primary key, name text, secret text, state text);
    create table slip (id bigint primary key, image text);
    create table held (id bigint primary key, image text);
    create table enrolment (student int, course text, note text, primary key (student, course));
    create table pupil (code text primary key, name text);
    create table log (id bigint primary key, at timestamptz default now());";

fn config() -> String {
    let file = |more: &str| {
        format!("files = [{{ column = \"image\", url_column = \"image_url\", directory = \"slips\"{more} }}]")
    };
    [
        entity(
            "rooms",
            "room",
            &["id"],
            "exclude = [\"secret\"]\nwhere = \"state is distinct from 'draft'\"",
        ),
        entity("slips", "slip", &["id"], &file("")),
        entity("held", "held", &["id"], &file(", until_uploaded = \"hold\"")),
        entity("enrolments", "enrolment", &["student", "course"], ""),
        entity("pupils", "pupil", &["code"], ""),
        entity("logs", "log", &["id"], "deletes = \"keep\""),
    ]
    .concat()
}

/// Asserts what the command says of a row, and its exit code.
#[track_caller]
fn assert_why(daemon: &Daemon, entity: &str, key: &str, words: &[&str], code: i32) {
    let output = daemon.ask(&["why", entity, key]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    for word in words {
        assert!(text.contains(word), "no {word:?} in:\n{text}\n{}", daemon.log());
    }
    assert_eq!(output.status.code(), Some(code), "{text}");
}

/// The same, as soon as it says so.
async fn until_why(daemon: &Daemon, entity: &str, key: &str, words: &[&str]) {
    let began = std::time::Instant::now();
    loop {
        let output = daemon.ask(&["why", entity, key]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        if words.iter().all(|word| text.contains(word)) {
            return;
        }
        assert!(
            began.elapsed() < LIMIT,
            "{words:?} not in:\n{text}\n{}",
            daemon.log()
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn site_of(hint: &str) -> (Cloud, Site) {
    Site::captured(hint, TABLES, &config()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn why_names_what_the_site_and_its_configuration_keep() {
    let (_cloud, site) = site_of("why_site").await;
    let daemon = Daemon::of(&site, "store");
    // No replicator has run yet.
    site.run("insert into room values (1, 'A', 's', 'open'); insert into pupil values ('07', 'Zoe')")
        .await;
    assert_why(
        &daemon,
        "rooms",
        "1",
        &["No replicator runs", "Next: cloud-sync run"],
        1,
    );
    let process = daemon.start();
    daemon.caught_up().await;
    let delivered = ["Nothing of it waits", "cloud-sync sync --entity rooms"];
    assert_why(&daemon, "rooms", "1", &delivered, 0);
    assert_why(
        &daemon,
        "pupils",
        "07",
        &["\"code\":\"07\"", "Nothing of it waits"],
        0,
    );
    assert_why(
        &daemon,
        "rooms",
        "2",
        &["The site has no row of rooms", "nothing to do"],
        0,
    );
    site.run("insert into log values (5); insert into room values (3, 'C', 's', 'draft')")
        .await;
    daemon.caught_up().await;
    assert_why(
        &daemon,
        "rooms",
        "3",
        &["does not meet the entity's condition", "draft"],
        0,
    );
    site.run("delete from log").await;
    daemon.caught_up().await;
    assert_why(
        &daemon,
        "logs",
        "5",
        &["it keeps it: deletes of logs are not sent"],
        0,
    );
    assert_why(
        &daemon,
        "romms",
        "1",
        &["no such entity", "did you mean rooms?"],
        2,
    );
    assert_why(
        &daemon,
        "enrolments",
        "7",
        &["not a JSON object with student, course", "write it as in"],
        2,
    );
    site.run("insert into enrolment values (7, 'M1', 'x')").await;
    daemon.caught_up().await;
    let key = "{\"student\": 7, \"course\": \"M1\"}";
    assert_why(&daemon, "enrolments", key, &["Nothing of it waits"], 0);
    assert!(process.terminate().await.success());
    // It waits, since nothing runs: written and deleted alike.
    site.run("update room set name = 'B' where id = 1; update enrolment set note = 'y'")
        .await;
    let stopped = ["No replicator runs", "position", "Next: cloud-sync run"];
    assert_why(&daemon, "rooms", "1", &stopped, 1);
    assert_why(&daemon, "enrolments", key, &stopped, 1);
    site.run("delete from pupil").await;
    assert_why(
        &daemon,
        "pupils",
        "07",
        &["there is no such row", "No replicator runs"],
        1,
    );
    // What is told by the command is told as JSON, too.
    let output = daemon.ask(&["why", "rooms", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&json["state"], &json["next"]),
        (&"waiting".into(), &"cloud-sync run".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn why_names_what_the_cloud_does() {
    let (mut cloud, site) = site_of("why_cloud").await;
    let daemon = Daemon::of(&site, "store");
    site.run("insert into room values (1, 'A'), (2, 'B')").await;
    let process = daemon.start();
    daemon.caught_up().await;
    let held = connect(&cloud.database_url).await;
    held.batch_execute("alter table cloud.rooms add check (name <> 'bad')")
        .await
        .unwrap();
    site.run("update room set name = 'bad' where id = 2").await;
    daemon
        .until("refused", LIMIT, |status| status.quarantine == Some(1))
        .await;
    let refused = ["The cloud refused it", "check", "cloud-sync quarantine show"];
    assert_why(&daemon, "rooms", "2", &refused, 1);
    assert!(daemon.ask(&["quarantine", "add", "rooms", "1"]).status.success());
    assert_why(
        &daemon,
        "rooms",
        "1",
        &["set aside by hand", "cloud-sync quarantine retry"],
        1,
    );
    held.batch_execute("alter table cloud.rooms drop constraint rooms_name_check")
        .await
        .unwrap();
    assert!(daemon.ask(&["quarantine", "retry", "--all"]).status.success());
    daemon
        .until("accepted", LIMIT, |status| status.quarantine == Some(0))
        .await;
    daemon.caught_up().await;
    assert_why(&daemon, "rooms", "2", &["Nothing of it waits"], 0);
    cloud.away().await;
    site.run("update room set name = 'late' where id = 1").await;
    until_why(
        &daemon,
        "rooms",
        "1",
        &["The cloud cannot be reached", "cloud-sync check"],
    )
    .await;
    cloud.set_keys(&["another-key-for-tests"]);
    cloud.back().await;
    until_why(&daemon, "rooms", "1", &["The cloud refuses the key"]).await;
    cloud.away().await;
    cloud.set_keys(&[KEY]);
    cloud.back().await;
    daemon.caught_up().await;
    until_why(&daemon, "rooms", "1", &["Nothing of it waits"]).await;
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn why_names_what_happens_to_files_and_to_the_capture() {
    let (_cloud, site) = site_of("why_files").await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    site.run("insert into slip values (1, 'gone.jpg'); insert into held values (1, 'late.jpg')")
        .await;
    until_why(
        &daemon,
        "slips",
        "1",
        &[
            "The row is in the cloud, and its file gone.jpg is not",
            "files why 'gone.jpg'",
        ],
    )
    .await;
    until_why(&daemon, "held", "1", &["file", "late.jpg"]).await;
    std::fs::write(site.media().join("gone.jpg"), "g").unwrap();
    until_why(
        &daemon,
        "slips",
        "1",
        &["Nothing of it waits", "gone.jpg uploaded"],
    )
    .await;
    // A column that must not leave has another name now.
    site.run("alter table room rename secret to open_secret; insert into room values (1, 'A')")
        .await;
    until_why(&daemon, "rooms", "1", &["rooms", "secret"]).await;
    assert!(process.terminate().await.success());
    site.run("alter table room rename open_secret to secret").await;
    site.run("drop trigger cloud_sync_5_insert on pupil; insert into pupil values ('x', 'y')")
        .await;
    let missed = ["not captured as it should be", "Next: cloud-sync init"];
    let trigger = "select tgname::text from pg_trigger where tgrelid = 'pupil'::regclass order by 1 limit 1";
    assert!(site.client.query_one(trigger, &[]).await.is_ok());
    assert_why(&daemon, "pupils", "x", &missed, 1);
    site.init().await;
    let gap = ["may have been missed", "cloud-sync sync --entity pupils"];
    assert_why(&daemon, "pupils", "x", &gap, 1);
}
