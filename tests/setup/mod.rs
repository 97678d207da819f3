//! `setup`: from a database and a folder to settings that replicate, without a line written by hand.

mod databases;
mod many;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use cloud_sync::config::{LoadOptions, Settings};
use cloud_sync::demo::equality::{self, EqualityReport};
use cloud_sync::{Catalogue, Replicator};

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

    /// Runs `setup` with the key in the environment, and these flags. Returns what it printed.
    async fn set_up(&self, cloud_url: &str, more: &[&str], expected: i32) -> String {
        let mut flags = vec![
            "setup",
            "--database-url",
            &self.database_url,
            "--cloud-url",
            cloud_url,
        ];
        flags.extend(["--media", "media", "--store", "store"]);
        flags.extend(more);
        let (code, printed) = self.ask(&flags, &KEY_IN_ENVIRONMENT).await;
        assert_eq!(code, Some(expected), "{printed}");
        printed
    }

    /// Asserts that `check` finds nothing wrong.
    async fn assert_check_passes(&self) {
        let (code, printed) = self.ask(&["check"], &KEY_IN_ENVIRONMENT).await;
        assert!(code == Some(0) && !printed.contains("WRONG"), "{printed}");
    }

    /// Starts `run`.
    fn run(&self, listen: &str) -> Killed {
        let mut command = self.command(&["run", "--set", listen]);
        Killed(command.envs(KEY_IN_ENVIRONMENT).spawn().unwrap())
    }

    /// Waits until nothing waits to be sent.
    async fn caught_up(&self, listen: &str) {
        let start = std::time::Instant::now();
        loop {
            let (_, printed) = self.ask(&["status", "--set", listen], &KEY_IN_ENVIRONMENT).await;
            if printed.lines().any(|line| line == "lag         none") {
                return;
            }
            assert!(start.elapsed() < LIMIT, "changes wait: {printed}");
        }
    }

    /// The catalogue that the settings and the database come to.
    async fn catalogue(&self) -> Catalogue {
        Replicator::complete_settings(&self.settings())
            .await
            .unwrap()
            .catalogue
    }

    fn settings(&self) -> Settings {
        let loaded = Settings::load(LoadOptions {
            config: Some(self.folder.path().join("cloud-sync.toml")),
            overrides: Vec::new(),
            env: KEY_IN_ENVIRONMENT
                .map(|(name, key)| (name.to_owned(), key.to_owned()))
                .into(),
            dir: self.folder.path().to_owned(),
        });
        loaded.unwrap().settings
    }

    /// Compares the database with the cloud.
    async fn compare(&self, cloud: &Cloud, catalogue: &Catalogue) -> EqualityReport {
        let media = self.settings().media.root;
        let report = equality::compare(
            &self.database_url,
            &cloud.database_url,
            catalogue,
            &media,
            &cloud.files,
            SITE,
        );
        report.await.unwrap()
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("cloud-sync.toml")).unwrap()
    }
}

const KEY_IN_ENVIRONMENT: [(&str, &str); 1] = [("CLOUD_API_KEY", KEY)];

/// The operator API on a port of its own.
fn listening() -> String {
    format!("control.listen=127.0.0.1:{}", free_port())
}

#[tokio::test]
async fn setup_writes_settings_that_check_passes_and_run_replicates() {
    let cloud = Cloud::start("setup_cloud").await;
    let place = Place::of("setup_site", TABLES).await;
    let printed = place.set_up(&cloud.url, &["--yes"], 0).await;
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
    place.assert_check_passes().await;
    let backfill = ["backfill", "--set", &listening()];
    let (code, printed) = place.ask(&backfill, &KEY_IN_ENVIRONMENT).await;
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
    let printed = place.set_up(&cloud.url, &["--yes"], 2).await;
    says(&printed, &["cloud-sync.toml", "exists already", "--force"]);
    assert_eq!(place.config(), config);
    place.set_up(&cloud.url, &["--yes", "--force"], 0).await;
    assert_eq!(place.config(), config);
}

#[tokio::test]
async fn the_example_of_the_package_is_replaced_and_keeps_its_mode() {
    let place = Place::of("setup_example", SCHOOL).await;
    let path = place.folder.path().join("cloud-sync.toml");
    let example = include_str!("../../packaging/cloud-sync.toml");
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
    let flags = ["--dry-run", "--set", "cloud.key=k"];
    let printed = place.set_up(NOWHERE, &flags, 0).await;
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
async fn a_file_answers_what_the_form_asks() {
    let cloud = Cloud::start("answers_cloud").await;
    let place = Place::of("answers_site", TABLES).await;
    let file = place.folder.path().join("answers.toml");
    let answers = |more: &str| {
        let text = format!(
            "database_url = {:?}\ncloud_url = {:?}\ncloud_key = {KEY:?}\nmedia_root = \"media\"\n{more}",
            place.database_url, cloud.url
        );
        std::fs::write(&file, text).unwrap();
    };
    let flags = ["setup", "--answers", "answers.toml"];
    answers("cloud_kye = \"a-secret\"\n");
    let (code, printed) = place.ask(&flags, &[]).await;
    assert_eq!(code, Some(2), "{printed}");
    says(
        &printed,
        &["answers.toml", "there is no answer cloud_kye", "cloud_url"],
    );
    assert!(!printed.contains("a-secret"), "{printed}");
    answers("write = false\n");
    let (code, printed) = place.ask(&flags, &[]).await;
    assert_eq!(code, Some(0), "{printed}");
    says(&printed, &["public.author", "accepts the key of site college"]);
    assert!(!place.folder.path().join("cloud-sync.toml").exists());
    answers("install_capture = false\n");
    let (code, printed) = place.ask(&flags, &[]).await;
    assert_eq!(code, Some(0), "{printed}");
    says(&printed, &["cloud-sync.toml is written", "cloud-sync init"]);
    says(&place.config(), &[&format!("key = {KEY:?}"), &cloud.url]);
    let (code, printed) = place.ask(&["init"], &[]).await;
    assert_eq!(code, Some(0), "{printed}");
    place.assert_check_passes().await;
    // What is given besides counts more than the answers.
    answers("");
    let flags = [
        "setup",
        "--answers",
        "answers.toml",
        "--force",
        "--cloud-url",
        NOWHERE,
    ];
    let (code, printed) = place.ask(&flags, &[]).await;
    assert_eq!(code, Some(4), "{printed}");
    says(&printed, &["Capture of 3 entities is installed"]);
    says(&place.config(), &[NOWHERE]);
}

/// Names with what has a meaning in patterns, and names that come to one.
const ODD_NAMES: &str = "
    create schema \"a.b\";
    create table \"a.b\".\"x,y\" (id int primary key);
    create table \"a.b\".\"x\"\"y\" (id int primary key);
    create table \"a.b\".\"no 'key', here\" (n int);
    create schema sales;
    create table sales.book (id int primary key);
    create table sales_book (id int primary key);
    create table \"x.y\" (id int primary key, \"a,b\" text, \"c\"\"d\" text, \"auth.token\" text);";

#[tokio::test]
async fn odd_names_are_set_up_too() {
    let cloud = Cloud::start("odd_cloud").await;
    let place = Place::of("odd_site", ODD_NAMES).await;
    place.set_up(&cloud.url, &["--yes"], 0).await;
    place.assert_check_passes().await;
    let listen = listening();
    let process = place.run(&listen);
    let client = connect(&place.database_url).await;
    let writes = "
        insert into \"a.b\".\"x,y\" values (1); insert into \"a.b\".\"x\"\"y\" values (2);
        insert into sales.book values (3); insert into sales_book values (4);
        insert into \"x.y\" values (5, 'one', 'two', 'three')";
    client.batch_execute(writes).await.unwrap();
    place.caught_up(&listen).await;
    let catalogue = place.catalogue().await;
    assert_eq!(catalogue.entities().len(), 5);
    let report = place.compare(&cloud, &catalogue).await;
    drop(process);
    assert!(report.equal, "{report}");
    let rows: u64 = report.entities.iter().map(|entity| entity.cloud_rows).sum();
    assert_eq!(rows, 5, "{report}");
}
