//! Set-ups that do not work are reported before anything is lost; what can be repaired without a person is.

use std::os::unix::fs::PermissionsExt;

use cloud_sync::error::Kind;
use cloud_sync::replicator::preconditions;
use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::install;

use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::says;
use crate::support::site::{KEY, LIMIT, Site, connect, entity};

// The owner of the tables is bound by their policies, and is no superuser.
#[tokio::test]
async fn row_level_security_that_hides_rows_is_told() {
    let root_url = Server::get().database("policies").await;
    let root = connect(&root_url).await;
    let role = "owner_under_policies";
    let name = root_url.rsplit('/').next().unwrap();
    root.batch_execute(&format!(
        "create role {role} login; alter database {name} owner to {role}"
    ))
    .await
    .unwrap();
    let url = root_url.replace("postgres@", &format!("{role}@"));
    let tables = "create table t (id bigint primary key, hidden boolean); create table p (id bigint primary \
         key) partition by range (id); \
         create table p_1 partition of p for values from (0) to (100)";
    let config = format!(
        "{}{}",
        entity("x", "t", &["id"], ""),
        entity("y", "p", &["id"], "")
    );
    let site = Site::at(url, "http://127.0.0.1:9/api", KEY, tables, &config).await;
    let policies = [
        (
            "t",
            "alter table t enable row level security; alter table t force row level security",
            "alter table t no force row level security",
        ),
        (
            "p_1",
            "alter table p_1 enable row level security, force row level security",
            "alter table p_1 no force row level security",
        ),
    ];
    let init = async || {
        let url = site.settings.require_database_url().unwrap();
        install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing).await
    };
    let assert_reported = async |table: &str| {
        let findings = preconditions::check(&site.settings).await;
        let found = findings.iter().find(|one| one.subject() == "catalogue").unwrap();
        let text = found
            .error()
            .unwrap_or_else(|| panic!("{table}: {}", found.detail()));
        says(text, &["row-level security", table, role, "bypassrls"]);
    };
    for (table, bind, free) in policies {
        site.run(bind).await;
        let error = init().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        says(
            &error.to_string(),
            &["row-level security", table, role, "bypassrls"],
        );
        assert_reported(table).await;
        site.run(free).await;
        init().await.unwrap();
        // The same when capture is installed already.
        site.run(bind).await;
        assert_reported(table).await;
        site.run(free).await;
    }
    root.batch_execute(&format!("alter role {role} bypassrls"))
        .await
        .unwrap();
    site.run(policies[0].1).await;
    init().await.unwrap();
}

// Empty, no text, no token, not a file, and another user's that nobody else may read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_token_file_is_replaced_and_replication_goes_on() {
    let (cloud, site) = Site::captured(
        "token",
        "create table t (id bigint primary key)",
        &entity("x", "t", &["id"], ""),
    )
    .await;
    let daemon = Daemon::of(&site, "store");
    let token = site.folder.path().join("store/control.token");
    let contents: [Option<&[u8]>; 5] = [
        Some(b""),
        Some(b"\xff\xfe\0\x01"),
        Some(b"two words\nof text\n"),
        Some(b"x"),
        None,
    ];
    for (nth, content) in contents.into_iter().enumerate() {
        std::fs::create_dir_all(token.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&token);
        match content {
            Some(content) => std::fs::write(&token, content).unwrap(),
            None => std::fs::create_dir(&token).unwrap(),
        }
        let process = daemon.start();
        site.run(&format!("insert into t values ({nth})")).await;
        daemon
            .until("accepted", LIMIT, |status| {
                status.lag.is_some_and(|lag| lag.changes == 0)
            })
            .await;
        let made = std::fs::read_to_string(&token).unwrap();
        assert_eq!(made.trim().len(), 64);
        assert_eq!(
            std::fs::metadata(&token).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let log = daemon.log();
        assert_eq!(log.matches("a new token is generated").count(), nth + 1, "{log}");
        assert!(!log.contains(made.trim()));
        assert!(process.terminate().await.success());
    }
    site.assert_equal(&cloud).await;
}
