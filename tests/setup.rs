//! `setup`: from a database and a folder to settings that replicate, without a line written by hand.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use cloud_sync::Replicator;
use cloud_sync::config::{LoadOptions, Settings};
use cloud_sync::demo::equality;

use crate::support::many_tables::{ManyTables, SCHEMAS};
use crate::support::postgres::{Server, free_port};
use crate::support::says;
use crate::support::site::{Cloud, KEY, LIMIT, NOWHERE, SCHOOL, SITE, connect};
use crate::support::sql::{texts, until};

const TABLES: &str = "
    create schema shop;
    create table author (id bigint primary key, name text, password_hash text, photo text);
    create table book (id bigint primary key, author_id bigint not null references author, title text,
                       scans jsonb, file_format text, made timestamptz not null default now());
    create table shop.\"Order\" (id uuid primary key, book_id bigint references book, n int);
    create table bare (n int);
    create table django_session (session_key text primary key, data text);
    create table login (token text primary key, at timestamptz);
    insert into author values (1, 'Ada', 'secret-hash', 'faces/ada.jpg'), (2, 'Bob', null, 'faces/gone.jpg');
    insert into book values (1, 1, 'One', '[\"scans/1.jpg\"]', 'paper');
    analyze;";

/// A process that ends with the test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder from which `setup` is run for a database.
struct Place {
    folder: tempfile::TempDir,
    database_url: String,
}

impl Place {
    async fn of(hint: &str, tables: &str) -> Self {
        let database_url = Server::get().database(hint).await;
        connect(&database_url).await.batch_execute(tables).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["faces/ada.jpg", "scans/1.jpg"] {
            let path = folder.path().join("media").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        Self { folder, database_url }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloud-sync"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .stdin(Stdio::null());
        command
    }

    /// Runs a command while a cloud serves in this process.
    async fn ask(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied());
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        let Output {
            status,
            stdout,
            stderr,
        } = run.await.unwrap();
        (
            status.code(),
            String::from_utf8([stdout, stderr].concat()).unwrap(),
        )
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("cloud-sync.toml")).unwrap()
    }
}

#[tokio::test]
async fn setup_writes_settings_that_check_passes_and_run_replicates() {
    let cloud = Cloud::start("setup_cloud").await;
    let place = Place::of("setup_site", TABLES).await;
    let flags = [
        "setup",
        "--yes",
        "--database-url",
        &place.database_url,
        "--cloud-url",
        &cloud.url,
        "--media",
        "media",
        "--store",
        "store",
    ];
    let (code, printed) = place.ask(&flags, &[("CLOUD_API_KEY", KEY)]).await;
    assert_eq!(code, Some(0), "{printed}");
    says(
        &printed,
        &[
            "public.author",
            "password_hash",
            "it has no primary key",
            "a framework keeps it for itself",
            "its key column token looks private",
            "accepts the key of site college",
            "create role cloud_sync login",
            "Capture of 3 entities is installed",
            "cloud-sync backfill",
        ],
    );
    let config = place.config();
    says(
        &config,
        &[
            "\"public.*\",",
            "\"shop.*\",",
            "\"!public.bare\",  # it has no primary key",
            "\"!public.django_session\",  # a framework",
            "# These columns stay on the site: public.author.password_hash.",
            "table = \"public.author\"",
            "{ column = \"photo\", url_column = \"photo_cloud_url\", directory = \"author\" },",
            "{ column = \"scans\", url_column = \"scans_cloud_url\", directory = \"book\", many = true },",
            "# key: CLOUD_API_KEY in the environment has it",
        ],
    );
    assert!(
        !config.contains(KEY) && !config.contains("file_format"),
        "{config}"
    );
    let path = place.folder.path().join("cloud-sync.toml");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let key = [("CLOUD_API_KEY", KEY)];
    let listen = format!("control.listen=127.0.0.1:{}", free_port());
    let (code, printed) = place.ask(&["check"], &key).await;
    assert!(code == Some(0) && !printed.contains("WRONG"), "{printed}");
    let (code, printed) = place.ask(&["backfill", "--set", &listen], &key).await;
    assert_eq!(code, Some(0), "{printed}");
    let held = connect(&cloud.database_url).await;
    assert_eq!(
        texts(&held, "select name from cloud.author order by id").await,
        ["Ada", "Bob"]
    );
    until(
        &held,
        "select count(*) = 1 from cloud.author where photo_cloud_url is not null",
    )
    .await;
    let columns = "select column_name::text from information_schema.columns where table_schema = 'cloud' \
                   and table_name = 'author' and column_name like '%password%'";
    assert_eq!(texts(&held, columns).await, [""; 0]);
    // A second time it overwrites nothing without being told.
    let (code, printed) = place.ask(&flags, &key).await;
    assert_eq!(code, Some(2));
    says(&printed, &["cloud-sync.toml", "exists already", "--force"]);
    assert_eq!(place.config(), config);
    let mut forced = flags.to_vec();
    forced.push("--force");
    assert_eq!(place.ask(&forced, &key).await.0, Some(0));
    assert_eq!(place.config(), config);
}

#[tokio::test]
async fn the_example_of_the_package_is_replaced_and_keeps_its_mode() {
    let place = Place::of("setup_example", SCHOOL).await;
    let path = place.folder.path().join("cloud-sync.toml");
    let example = include_str!("../packaging/cloud-sync.toml");
    std::fs::write(&path, example).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let flags = [
        "setup",
        "--yes",
        "--no-init",
        "--database-url",
        &place.database_url,
        "--cloud-url",
        NOWHERE,
        "--set",
        "cloud.key=k",
    ];
    // The cloud is away, which is told at the end.
    let (code, printed) = place.ask(&flags, &[]).await;
    assert_eq!(code, Some(4), "{printed}");
    let config = place.config();
    says(&config, &["path = \"/var/lib/cloud-sync/store\"", NOWHERE]);
    // The group may read it as before, others may not: it holds a password.
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    let (code, printed) = place.ask(&flags, &[]).await;
    assert_eq!(code, Some(2));
    says(&printed, &["exists already"]);
}

#[tokio::test]
async fn the_tables_of_a_college_need_no_entity() {
    let place = Place::of("setup_college", SCHOOL).await;
    let flags = [
        "setup",
        "--dry-run",
        "--database-url",
        &place.database_url,
        "--cloud-url",
        "http://127.0.0.1:9/api",
        "--set",
        "cloud.key=k",
    ];
    let (code, printed) = place.ask(&flags, &[]).await;
    assert_eq!(code, Some(0), "{printed}");
    says(&printed, &["The tables are the nine of a college", "key = \"k\""]);
    assert!(!printed.contains("[catalogue]") && !place.folder.path().join("cloud-sync.toml").exists());
}

#[tokio::test]
async fn what_is_missing_is_asked_on_a_terminal_and_is_an_error_without_one() {
    let place = Place::of("setup_asks", TABLES).await;
    let (code, printed) = place.ask(&["setup"], &[]).await;
    assert_eq!(code, Some(2));
    says(&printed, &["no terminal", "--yes", "--dry-run"]);
    let (code, printed) = place.ask(&["setup", "--yes"], &[]).await;
    assert_eq!(code, Some(2));
    says(&printed, &["cloud.url is not set"]);
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: the program `script`, which makes a terminal, is not there");
        return;
    }
    let program = env!("CARGO_BIN_EXE_cloud-sync");
    let mut terminal = place.command(&[]);
    let mut terminal_command = Command::new("script");
    terminal_command
        .args([
            "--quiet",
            "--return",
            "--command",
            &format!("{program} setup"),
            "/dev/null",
        ])
        .current_dir(terminal.get_current_dir().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    terminal = terminal_command;
    let answers = format!(
        "{}\nhttp://127.0.0.1:9/api\nthe-key\nmedia\ny\nn\n",
        place.database_url
    );
    let run = tokio::task::spawn_blocking(move || {
        let mut child = terminal.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), answers.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = run.await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    says(
        &printed,
        &[
            "The site's database",
            "Write cloud-sync.toml?",
            "Install capture",
            "cloud-sync init",
        ],
    );
    // The cloud does not answer: the file is written all the same, and the exit code says it.
    assert_eq!(output.status.code(), Some(4), "{printed}");
    says(&place.config(), &["key = \"the-key\"", "http://127.0.0.1:9/api"]);
}

#[tokio::test]
async fn a_database_of_many_tables_takes_a_few_lines_and_arrives_value_for_value() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut many = ManyTables::of(seed, 150);
    let cloud = Cloud::start("many_cloud").await;
    let place = Place::of("many_site", &many.definitions()).await;
    let listen = format!("control.listen=127.0.0.1:{}", free_port());
    let flags = [
        "setup",
        "--yes",
        "--database-url",
        &place.database_url,
        "--cloud-url",
        &cloud.url,
        "--media",
        "media",
        "--store",
        "store",
    ];
    let key = [("CLOUD_API_KEY", KEY)];
    let (code, printed) = place.ask(&flags, &key).await;
    assert_eq!(code, Some(0), "{printed}");
    says(
        &printed,
        &[&format!("Capture of {} entities is installed", many.count())],
    );
    let config = place.config();
    let of_tables = config.split_once("[catalogue]").unwrap().1;
    let lines = of_tables
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .count();
    assert_eq!(lines, SCHEMAS + 2, "{of_tables}");
    let (code, printed) = place.ask(&["check"], &key).await;
    assert!(code == Some(0) && !printed.contains("WRONG"), "{printed}");
    let mut command = place.command(&["run", "--set", &listen]);
    let process = Killed(command.envs(key).spawn().unwrap());
    let client = connect(&place.database_url).await;
    for statement in many.writes() {
        // A row may have no parent to refer to, and a key may be there already.
        let _ = client.execute(&statement, &[]).await;
    }
    let written = std::time::Instant::now();
    while place
        .ask(&["status", "--set", &listen], &key)
        .await
        .1
        .lines()
        .all(|line| line != "lag         none")
    {
        assert!(written.elapsed() < LIMIT, "changes wait");
    }
    let settings = Settings::load(LoadOptions {
        config: Some(place.folder.path().join("cloud-sync.toml")),
        overrides: Vec::new(),
        env: [("CLOUD_API_KEY".to_owned(), KEY.to_owned())].into(),
        dir: place.folder.path().to_owned(),
    });
    let settings = Replicator::complete_settings(&settings.unwrap().settings)
        .await
        .unwrap();
    let report = equality::compare(
        &place.database_url,
        &cloud.database_url,
        &settings.catalogue,
        &settings.media.root,
        &cloud.files,
        SITE,
    );
    let report = report.await.unwrap();
    drop(process);
    assert!(report.equal, "{report}");
    let rows: u64 = report.entities.iter().map(|entity| entity.cloud_rows).sum();
    assert!(rows > many.count() as u64, "{report}");
}
