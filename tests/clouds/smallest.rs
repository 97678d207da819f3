//! The smallest servers, `examples/servers/server.php` and `server.py`, as clouds of the real program. Where
//! PHP or Python is not there, its test says so and ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cloud_sync::control::SyncRequest;
use cloud_sync::reconcile::NoObserver;
use serde_json::{Value, json};

use crate::support::postgres::free_port;
use crate::support::site::{LIMIT, Running, Site, entity, provider};

/// The key of the guide's lines.
const KEY: &str = "a-long-secret";

const GUIDE: &str = include_str!("../../docs/guide/connect-an-existing-cloud-server.md");

const TABLES: &str = "
    create table room (room_id bigint primary key, room_no text, area numeric);
    create table seat (room_no text, seat_no int, v text, primary key (room_no, seat_no));
    create table leave (leave_id bigint primary key, room_id bigint references room, slip text,
        created_at timestamptz not null default now())";

/// Ends the server when its input ends, so also when the tests are killed.
const KEEPER: &str = "\"$@\" & cat >/dev/null; kill $!; wait";

/// One of the servers, on a port and with a folder of its own. It ends when it is dropped.
struct Smallest {
    keeper: Child,
    url: String,
    folder: tempfile::TempDir,
}

impl Smallest {
    /// Starts it; `None` if what runs it is not on this machine, which is said.
    async fn start(program: &str, arguments: &[&str]) -> Option<Self> {
        let probe = match program {
            "php" => [
                "-r",
                "exit(PHP_VERSION_ID >= 80100 && extension_loaded('pdo_sqlite') ? 0 : 1);",
            ],
            _ => ["-c", "import sqlite3, sys; sys.exit(sys.version_info < (3, 10))"],
        };
        let found = Command::new(program).args(probe).output();
        if !found.is_ok_and(|found| found.status.success()) {
            println!("skipped: no {program} here that is new enough (PHP 8.1, Python 3.10) and has SQLite");
            return None;
        }
        provider();
        let folder = tempfile::tempdir().unwrap();
        let entities = std::fs::read_to_string(example("entities.json")).unwrap();
        let mut entities: Value = serde_json::from_str(&entities).unwrap();
        entities["seats"] = json!({"key": ["room_no", "seat_no"]});
        std::fs::write(folder.path().join("entities.json"), entities.to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let port = free_port();
        let arguments = arguments
            .iter()
            .map(|argument| argument.replace("PORT", &port.to_string()));
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh", program])
            .args(arguments)
            .current_dir(folder.path())
            .env("CLOUD_API_KEY", KEY)
            .env("CLOUD_PORT", port.to_string())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let url = format!("http://127.0.0.1:{port}/api");
        let server = Self { keeper, url, folder };
        let start = std::time::Instant::now();
        while reqwest::get(format!("{}/sync-status", server.url)).await.is_err() {
            let log = std::fs::read_to_string(server.folder.path().join("log")).unwrap();
            assert!(start.elapsed() < LIMIT, "{program} does not answer: {log}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Some(server)
    }

    /// The rows of a list.
    async fn rows(&self, path: &str) -> Vec<Value> {
        let response = reqwest::Client::new()
            .get(format!("{}/{path}", self.url))
            .bearer_auth(KEY)
            .send();
        response
            .await
            .unwrap()
            .error_for_status()
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    /// Deletes a row behind the site's back.
    async fn lose(&self, row: &str) {
        let response = reqwest::Client::new()
            .delete(format!("{}/{row}", self.url))
            .bearer_auth(KEY)
            .send();
        assert!(response.await.unwrap().status().is_success());
    }
}

impl Drop for Smallest {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/servers")
        .join(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python() {
    let path = example("server.py");
    if let Some(server) = Smallest::start("python3", &[path.to_str().unwrap()]).await {
        carries_a_site("smallest_python", &server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn php() {
    let path = example("server.php");
    let limits = [
        "-d",
        "display_errors=0",
        "-d",
        "post_max_size=0",
        "-d",
        "upload_max_filesize=64M",
    ];
    let listen = ["-S", "127.0.0.1:PORT", path.to_str().unwrap()];
    if let Some(server) = Smallest::start("php", &[&limits[..], &listen].concat()).await {
        carries_a_site("smallest_php", &server).await;
    }
}

async fn caught_up(running: &Running) {
    let status = running.caught_up().await;
    assert_eq!(status.quarantine, Some(0), "{status:#?}");
}

/// How many rows a sync pushed.
async fn sync(running: &Running) -> u64 {
    let report = running
        .replicator
        .sync(&SyncRequest::default(), &NoObserver)
        .await
        .unwrap();
    assert!(report.success(), "{:?}", report.errors());
    report.summary().iter().map(|(_, &count)| count as u64).sum()
}

async fn carries_a_site(hint: &str, server: &Smallest) {
    let config = [
        entity("rooms", "room", &["room_id"], ""),
        entity("seats", "seat", &["room_no", "seat_no"], ""),
        entity(
            "leaves",
            "leave",
            &["leave_id"],
            "retention = { column = \"created_at\", days = 90 }\n\
             files = [{ column = \"slip\", url_column = \"slip_url\", directory = \"leave_slips\" }]",
        ),
    ];
    let site = Site::bare(hint, &server.url, KEY, TABLES, &config.concat()).await;
    site.init().await;
    let running = site.replicate();
    // Given rows, some older than the retention, and a file,
    let content = b"\r\n--slip\0\xff\r\n".repeat(10_000);
    std::fs::write(site.media().join("my slip é.jpg"), &content).unwrap();
    site.run(
        "insert into room select n, 'R' || n, 1.10000000000000000001 from generate_series(1, 700) n; \
         insert into seat select 'A/1, é', n, 'v' from generate_series(1, 20) n; \
         insert into leave select n, n, null, now() - interval '200 days' from generate_series(1, 10) n; \
         insert into leave values (11, 11, 'my slip é.jpg'), (12, 12, null)",
    )
    .await;
    caught_up(&running).await;
    // when some of them change and some go,
    site.run(
        "update room set room_no = 'changed' where room_id <= 3; \
         delete from room where room_id > 600; delete from seat where seat_no > 5",
    )
    .await;
    caught_up(&running).await;
    // then the cloud holds what the site holds, with all digits,
    let rooms = server.rows("rooms").await;
    assert_eq!(rooms.len(), 600);
    assert_eq!(rooms.iter().filter(|row| row["room_no"] == "changed").count(), 3);
    let exact = reqwest::Client::new()
        .get(format!("{}/rooms", server.url))
        .bearer_auth(KEY)
        .send();
    let exact = exact.await.unwrap().text().await.unwrap();
    assert_eq!(exact.matches("1.10000000000000000001").count(), 600);
    assert_eq!(server.rows("seats").await.len(), 5);
    assert_eq!(server.rows("leaves").await.len(), 12);
    // a list of its days has the young rows,
    assert_eq!(server.rows("leaves?days=90").await.len(), 2);
    // and the file is where its row says.
    let leaves = server.rows("leaves").await;
    let with_slip = leaves.iter().find(|row| row["leave_id"] == 11).unwrap();
    let url = with_slip["slip_url"]
        .as_str()
        .unwrap_or_else(|| panic!("{with_slip}"));
    let stored = reqwest::get(url).await.unwrap().bytes().await.unwrap();
    assert!(stored[..] == content[..], "{url}");
    // A sync finds nothing to push, and what the cloud has lost.
    assert_eq!(sync(&running).await, 0);
    server.lose("rooms/7").await;
    server.lose("seats/A%2F1%2C%20%C3%A9,2").await;
    assert_eq!(sync(&running).await, 2);
    assert_eq!(
        (server.rows("rooms").await.len(), server.rows("seats").await.len()),
        (600, 5)
    );
    running.end().await;
}

// The calls of the guide, with the answers that it shows.
#[tokio::test]
async fn the_guides_calls_are_answered_as_it_says() {
    let path = example("server.py");
    let Some(server) = Smallest::start("python3", &[path.to_str().unwrap()]).await else {
        return;
    };
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: no curl here");
        return;
    }
    let address = server.url.trim_start_matches("http://").trim_end_matches("/api");
    let guide = GUIDE.replace("127.0.0.1:8080", address);
    let script = guide
        .split("```sh\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let shown: Vec<&str> = script
        .lines()
        .filter_map(|line| line.strip_prefix("#> "))
        .collect();
    let run = Command::new("sh")
        .args(["-e", "-c", script])
        .current_dir(server.folder.path())
        .output();
    let run = run.unwrap();
    let answered = String::from_utf8(run.stdout).unwrap();
    assert!(
        run.status.success() && shown.len() > 10,
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert_eq!(answered.lines().collect::<Vec<_>>(), shown);
}
