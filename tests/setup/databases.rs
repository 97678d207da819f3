//! Databases that public packages make by their own migrations: `make test-databases`. A package that cannot be
//! installed is skipped, and the reason is printed.

use std::path::Path;
use std::process::Command;

use super::{KEY_IN_ENVIRONMENT, Place, listening};
use crate::support::random_writes::write_everywhere;
use crate::support::site::{Cloud, connect};
use crate::support::sql::texts;

/// What must not be a column in the cloud, whatever the package.
const NEVER: &str = "passw|token|secret|session|api_?key|private_?key|passphrase|paperkey|(^|_)otp(_|$)|csrf";

/// Makes the package's database; `false` if it cannot be installed here, which is said.
async fn make(package: &str, database_url: &str) -> bool {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("databases")
        .join(package);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/setup/packages/make-database");
    let mut command = Command::new(script);
    command.arg(package).arg(folder).arg(database_url);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.code() == Some(77) {
        println!("skipped {package}: {printed}");
        return false;
    }
    assert!(output.status.success(), "{package}: {printed}");
    true
}

/// Sets the database up without a line by hand, writes to every table, and compares. `private` are columns that
/// must have stayed at the site, of tables that are replicated or not.
async fn replicates(package: &str, private: &[&str]) {
    let place = Place::of(&format!("{package}_site"), "").await;
    if !make(package, &place.database_url).await {
        return;
    }
    let seed = rand::random();
    println!("seed {seed}");
    let cloud = Cloud::start(&format!("{package}_cloud")).await;
    place.set_up(&cloud.url, &["--yes"], 0).await;
    place.assert_check_passes().await;
    let listen = listening();
    let backfill = ["backfill", "--all", "--set", &listen];
    let (code, printed) = place.ask(&backfill, &KEY_IN_ENVIRONMENT).await;
    assert_eq!(code, Some(0), "{printed}");
    let process = place.run(&listen);
    let client = connect(&place.database_url).await;
    let written = write_everywhere(&client, seed).await;
    place.caught_up(&listen).await;
    let catalogue = place.catalogue().await;
    let report = place.compare(&cloud, &catalogue).await;
    drop(process);
    assert!(report.equal, "{report}");
    for entity in catalogue.entities() {
        let found = client
            .query_one("select to_regclass($1)::oid", &[&entity.table])
            .await;
        let oid: u32 = found.unwrap().get(0);
        let table = written.iter().find(|table| table.oid == oid).unwrap();
        assert!(
            table.inserted > 0 && table.updated > 0 && table.deleted > 0,
            "{}: {} inserted, {} updated, {} deleted; {}",
            table.name,
            table.inserted,
            table.updated,
            table.deleted,
            table.refusal
        );
    }
    let held = connect(&cloud.database_url).await;
    let columns =
        "from information_schema.columns where table_schema = 'cloud' and column_name not like '\\_%'";
    let left = texts(
        &held,
        &format!("select table_name || '.' || column_name {columns} order by 1"),
    )
    .await;
    let secrets = format!("select table_name || '.' || column_name {columns} and column_name ~* '{NEVER}'");
    assert_eq!(texts(&held, &secrets).await, [""; 0], "left the site");
    for column in private {
        assert!(!left.iter().any(|left| left == column), "{column} left the site");
    }
    println!(
        "{package}: {} entities, {} columns",
        catalogue.entities().len(),
        left.len()
    );
}

#[tokio::test]
#[ignore = "installs a public package: make test-databases"]
async fn wagtail() {
    replicates(
        "wagtail",
        &[
            "auth_user.password",
            "wagtailcore_apitoken.key_hash",
            "django_session.session_data",
        ],
    )
    .await;
}

#[tokio::test]
#[ignore = "installs a public package: make test-databases"]
async fn oscar() {
    replicates(
        "oscar",
        &[
            "auth_user.password",
            "customer_productalert.key",
            "wishlists_wishlist.key",
        ],
    )
    .await;
}

#[tokio::test]
#[ignore = "installs a public package: make test-databases"]
async fn weblate() {
    replicates(
        "weblate",
        &[
            "weblate_auth_user.password",
            "authtoken_token.key",
            "otp_totp_totpdevice.key",
            "configuration_setting.value",
            "trans_project.machinery_settings",
        ],
    )
    .await;
}

#[tokio::test]
#[ignore = "installs a public package: make test-databases"]
async fn directus() {
    replicates(
        "directus",
        &[
            "directus_users.tfa_secret",
            "directus_users.auth_data",
            "directus_settings.mapbox_key",
        ],
    )
    .await;
}
