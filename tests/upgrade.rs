//! `upgrade`: what it says before an upgrade, and what it does, with the real program.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

use crate::support::process::Daemon;
use crate::support::says;
use crate::support::site::{Cloud, KEY, NOWHERE, Site};
use crate::support::sql::number;

const TABLES: &str = "create table pot (pot_id bigint primary key, label text); \
                      create table bed (bed_id bigint primary key)";

const ENTITIES: &str = "
[catalogue]
tables = [\"public.*\"]
";

const POTS: &str = "
[[entity]]
name = \"pots\"
table = \"pot\"
key = [\"pot_id\"]
path = \"pots\"
";

/// How many migrations the program has.
const MIGRATIONS: &str = "select count(*) from cloud_sync._sqlx_migrations";

const OUTDATED: &str = "select count(*) from cloud_sync.entity where definition like 'v0 %'";

/// Exit code, the JSON on stdout.
fn check(daemon: &Daemon) -> (Option<i32>, Value) {
    let Output { status, stdout, .. } = daemon.ask(&["upgrade", "--check", "--json"]);
    (status.code(), serde_json::from_slice(&stdout).unwrap())
}

/// Exit code, everything that was printed.
fn ask(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String) {
    let output = daemon.ask(arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Makes the capture functions those of an older version.
async fn outdate(site: &Site) {
    site.run("update cloud_sync.entity set definition = 'v0 ' || definition")
        .await;
}

/// Installs the schema as the first three migrations left it.
async fn install_older_schema(site: &Site) {
    let folder = tempfile::tempdir().unwrap();
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/source");
    for entry in std::fs::read_dir(migrations).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name < "0004".as_ref() as &std::ffi::OsStr {
            std::fs::copy(&path, folder.path().join(name)).unwrap();
        }
    }
    site.run("create schema cloud_sync").await;
    let mut connection = PgConnection::connect(&site.database_url).await.unwrap();
    sqlx::raw_sql("set search_path = cloud_sync, pg_temp")
        .execute(&mut connection)
        .await
        .unwrap();
    let migrator = Migrator::new(folder.path()).await.unwrap();
    migrator.run(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_schema_is_brought_up_to_date() {
    let cloud = Cloud::start("upgrade_older").await;
    let site = Site::bare("upgrade_older", &cloud.url, KEY, TABLES, POTS).await;
    let daemon = Daemon::of(&site, "store");
    // Nothing is installed: nothing is there to upgrade.
    let (code, json) = check(&daemon);
    assert_eq!(
        (code, &json["schema"]["state"]),
        (Some(0), &"not-installed".into())
    );
    let (code, printed) = ask(&daemon, &["upgrade"]);
    assert_eq!(code, Some(0), "{printed}");
    says(&printed, &["nothing to upgrade", "cloud-sync init"]);

    install_older_schema(&site).await;
    let (code, json) = check(&daemon);
    assert_eq!(code, Some(0), "{json:#}");
    assert_eq!(json["schema"]["state"], "older");
    assert_eq!(json["schema"]["installed"], 3);
    assert_eq!(
        (&json["needs_upgrade"], &json["compatible"]),
        (&true.into(), &true.into())
    );
    assert_eq!(number(&site.client, MIGRATIONS).await, 3);

    let (code, printed) = ask(&daemon, &["upgrade"]);
    assert_eq!(code, Some(0), "{printed}");
    let (code, json) = check(&daemon);
    assert_eq!(code, Some(0), "{json:#}");
    assert_eq!(json["schema"]["state"], "current");
    assert_eq!(json["needs_upgrade"], false);
    // It replicates.
    let process = daemon.start();
    site.run("insert into pot values (1, 'a pot')").await;
    assert_eq!(daemon.caught_up().await.counts.accepted, 1);
    assert!(process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn older_functions_are_renewed_and_no_further_table_is_captured() {
    let cloud = Cloud::start("upgrade_functions").await;
    let site = Site::bare("upgrade_functions", &cloud.url, KEY, TABLES, ENTITIES).await;
    let daemon = Daemon::of(&site, "store");
    assert_eq!(ask(&daemon, &["init"]).0, Some(0));
    site.run("create table late (id bigint primary key)").await;
    outdate(&site).await;
    let (code, printed) = ask(&daemon, &["upgrade", "--check"]);
    assert_eq!(code, Some(0), "{printed}");
    says(
        &printed,
        &[
            "bed, pot are older",
            "cloud-sync upgrade",
            "accepts the key of site college",
        ],
    );
    assert_eq!(number(&site.client, OUTDATED).await, 2);
    let (code, printed) = ask(&daemon, &["upgrade"]);
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(number(&site.client, OUTDATED).await, 0);
    assert_eq!(
        number(&site.client, "select count(*) from cloud_sync.entity").await,
        2
    );
    let (code, printed) = ask(&daemon, &["upgrade", "--check"]);
    assert_eq!(code, Some(0), "{printed}");
    says(&printed, &["fits this site as it is"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_refused_and_left_as_it_is() {
    let (_cloud, site) = Site::captured("upgrade_newer", TABLES, POTS).await;
    let daemon = Daemon::of(&site, "store");
    outdate(&site).await;
    site.run(
        "insert into cloud_sync._sqlx_migrations (version, description, success, checksum, execution_time) \
         values (9999, 'of later', true, '', 0)",
    )
    .await;
    let (code, json) = check(&daemon);
    assert_eq!(code, Some(2), "{json:#}");
    assert_eq!(
        (&json["compatible"], &json["schema"]["state"]),
        (&false.into(), &"newer".into())
    );
    let (code, printed) = ask(&daemon, &["upgrade"]);
    assert_eq!(code, Some(2), "{printed}");
    says(
        &printed,
        &[
            "a newer cloud-sync has brought it to version 9999",
            "use the newer cloud-sync",
        ],
    );
    assert_eq!(number(&site.client, OUTDATED).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_is_away_is_told_and_does_not_prevent_the_upgrade() {
    let site = Site::bare("upgrade_away", NOWHERE, KEY, TABLES, POTS).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    outdate(&site).await;
    assert_eq!(check(&daemon).0, Some(4));
    let (code, printed) = ask(&daemon, &["upgrade"]);
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(number(&site.client, OUTDATED).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_upgrade_while_a_replicator_runs() {
    let (_cloud, site) = Site::captured("upgrade_led", TABLES, POTS).await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    site.run("insert into pot values (1, 'a pot')").await;
    daemon.caught_up().await;
    // As if the program that runs were older than the one that is asked.
    site.run(
        "delete from cloud_sync._sqlx_migrations \
         where version = (select max(version) from cloud_sync._sqlx_migrations)",
    )
    .await;
    let (code, printed) = ask(&daemon, &["upgrade", "--check"]);
    assert_eq!(code, Some(0), "{printed}");
    says(&printed, &["it runs now (session", "stop it before"]);
    let (code, printed) = ask(&daemon, &["upgrade"]);
    assert_eq!(code, Some(2), "{printed}");
    says(&printed, &["a replicator drains the outbox now"]);
    assert!(process.terminate().await.success());
}
