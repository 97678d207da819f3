//! What must not leave the site does not: not in a column of any type that can be redacted, and not by way of
//! the cloud's words.

use cloud_sync::catalogue::Catalogue;

use crate::support::baseline::{self, BaselineServer};
use crate::support::fault::Fault;
use crate::support::process::Daemon;
use crate::support::says;
use crate::support::scenario::{Scenario, row_texts};
use crate::support::site::{LIMIT, Site, entity};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_leave_columns_of_text_of_arrays_and_of_json() {
    let tables = "create extension citext; create table t (id bigint primary key, feed text, feeds text[], \
         letters citext, \
         doc jsonb, plain json, secret text)";
    let more = "redact = [\"feed\", \"feeds\", \"letters\", \"doc\", \"plain\"]\nexclude = [\"secret\"]";
    let scenario = Scenario::start("redacted", tables, &entity("x", "t", &["id"], more)).await;
    for (nth, (before, after)) in [
        ("rtsp://admin:pa/ss@host:554/live", "rtsp://host:554/live"),
        ("admin:pa/ss@host", "host"),
        ("rtsp://host/user=admin_password=X_channel=1.sdp", "rtsp://host/"),
        ("/user=admin_password=X_channel=1.sdp", "/"),
        ("?u=admin&p=X", ""),
        ("admin:X@host", "host"),
        ("the pass is hunter2", "the pass is "),
        ("plain words", "plain words"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = nth as i64 + 1;
        let insert = "insert into t values ($1, $2, array[$2, null, $2], $2::text::citext, \
             jsonb_build_object('a', jsonb_build_array($2::text), \
             'n', 1), json_build_object('u', $2::text), 'hunter2')";
        scenario
            .site
            .client
            .execute(insert, &[&id, &before])
            .await
            .unwrap();
        scenario.running.caught_up().await;
        let columns = "feed, feeds[1], feeds[3], letters, (doc->'a'->>0), (doc->>'n'), (plain->>'u')";
        let held = row_texts(&scenario.cloud_client, "cloud.x", columns, &format!("id = {id}")).await;
        let expected = scenario
            .site_client
            .query_one("select (array[$1, $1, $1, $1, $1, '1', $1])::text", &[&after])
            .await
            .unwrap();
        assert_eq!(held, [expected.get::<_, String>(0)], "{before}");
    }
    scenario.running.end().await;
}

#[tokio::test]
async fn a_column_that_cannot_be_redacted_is_refused_at_start() {
    for kind in ["bytea", "bigint", "boolean", "timestamptz", "numeric"] {
        let table = format!("create table t (id bigint primary key, feed {kind})");
        let text = Site::refusal(
            "no_redaction",
            &table,
            &entity("x", "t", &["id"], "redact = [\"feed\"]"),
        )
        .await;
        says(
            &text,
            &["entity x", "column feed", "cannot be redacted", "exclude"],
        );
    }
}

const VALUE: &str = "a-value-of-the-row";

// The cloud's refusal repeats what it was sent, as validation messages do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clouds_words_about_a_row_stay_in_the_quarantine() {
    let server = BaselineServer::start(&Catalogue::builtin(), &[]).await;
    let site = Site::school("words", &server.url(), baseline::KEY).await;
    let words =
        format!("{{\"message\":\"the name {VALUE} is taken\",\"errors\":{{\"room_name\":[\"{VALUE}\"]}}}}");
    server.fault(Fault::answer(422, "application/json", &words).when(|row| row["room_name"] == VALUE));
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start_under(&[], |command| {
        command.env("RUST_LOG", "debug");
    });
    daemon.caught_up().await;
    let token = std::fs::read_to_string(site.folder.path().join("store/control.token")).unwrap();
    let get = |path: &str| {
        let url = format!("http://{}{path}", daemon.listen());
        reqwest::Client::new().get(url).bearer_auth(token.trim()).send()
    };
    // Given refused rows, some found by a sync,
    site.run(&format!(
        "insert into tbl_room (room_no, room_name) select 'R' || n, '{VALUE}' from generate_series(1, 3) n"
    ))
    .await;
    daemon
        .until("refused", LIMIT, |status| status.quarantine == Some(3))
        .await;
    let report = daemon.ask(&["sync", "--json"]);
    assert_eq!(report.status.code(), Some(1), "{report:?}");
    let mut printed = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(
        printed.contains("422") && printed.contains("quarantine list"),
        "{printed}"
    );
    // then no message holds a value of theirs,
    printed += &String::from_utf8_lossy(&report.stderr);
    for arguments in [&["status"][..], &["status", "--json"], &["check"], &["sync"]] {
        let answer = daemon.ask(arguments);
        printed += &String::from_utf8_lossy(&answer.stdout);
        printed += &String::from_utf8_lossy(&answer.stderr);
    }
    for path in ["/api/cloud-sync/status", "/metrics", "/healthz"] {
        printed += &get(path).await.unwrap().text().await.unwrap();
    }
    printed += &daemon.log();
    let leaks: Vec<&str> = printed.lines().filter(|line| line.contains(VALUE)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    // nor do the cloud's words in the quarantine: the row itself is there for who decides on it.
    let list = daemon.ask(&["quarantine", "list"]);
    let list = String::from_utf8_lossy(&list.stdout);
    assert!(list.contains("is taken") && !list.contains(VALUE), "{list}");
    assert!(process.terminate().await.success());
}
