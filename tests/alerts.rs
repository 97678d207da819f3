//! Alerts, from the running program to a real receiver: a webhook's HTTP server and an SMTP server.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;

use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

const TABLE: &str = "create table t (id int primary key, v text)";

/// A webhook's server: it refuses the first calls, and keeps what it takes.
#[derive(Clone, Default)]
struct Hook {
    taken: Arc<Mutex<Vec<Value>>>,
    refusals: Arc<Mutex<usize>>,
}

impl Hook {
    /// Starts it; it refuses so many calls first. Returns its URL.
    async fn start(refusals: usize) -> (Self, String) {
        let hook = Self::default();
        *hook.refusals.lock().unwrap() = refusals;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?room=it", listener.local_addr().unwrap());
        let router = Router::new().route("/hook", post(take)).with_state(hook.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (hook, url)
    }

    fn taken(&self) -> Vec<Value> {
        self.taken.lock().unwrap().clone()
    }

    /// Waits until it has so many messages.
    async fn until(&self, count: usize, daemon: &Daemon) -> Vec<Value> {
        let start = Instant::now();
        while self.taken().len() < count {
            assert!(start.elapsed() < LIMIT, "{:#?}\n{}", self.taken(), daemon.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.taken()
    }
}

async fn take(State(hook): State<Hook>, Json(message): Json<Value>) -> StatusCode {
    let mut refusals = hook.refusals.lock().unwrap();
    if *refusals > 0 {
        *refusals -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    hook.taken.lock().unwrap().push(message);
    StatusCode::OK
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_hears_of_a_row_in_quarantine_once_and_of_its_end_also_after_a_kill() {
    let cloud = Cloud::start("alerts").await;
    let site = Site::bare("alerts", &cloud.url, KEY, TABLE, &entity("x", "t", &["id"], "")).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let (hook, url) = Hook::start(1).await;
    let webhook = format!("alerts.webhook={url}");
    let settings = [&*webhook, "alerts.hold=0s"];
    let process = daemon.start_with(&settings);
    site.run("insert into t values (1, 'a')").await;
    daemon.caught_up().await;
    // Given a row that the cloud refuses,
    let there = connect(&cloud.database_url).await;
    there
        .batch_execute("alter table cloud.x add constraint short check (length(v) < 5)")
        .await
        .unwrap();
    site.run("insert into t values (2, 'too long')").await;
    // then it is told, although the receiver was not well at first,
    let told = hook.until(1, &daemon).await;
    assert_eq!(
        (&told[0]["kind"], &told[0]["state"]),
        (&"quarantine".into(), &"problem".into())
    );
    let text = told[0]["text"].as_str().unwrap();
    assert!(text.contains("1 row is in quarantine"), "{text}");
    // and not again after a kill.
    let noted = || std::fs::read_to_string(site.folder.path().join("store/alerts.json")).unwrap_or_default();
    let start = Instant::now();
    while !noted().contains("told_since\":\"") {
        assert!(start.elapsed() < LIMIT, "{}", noted());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    process.kill();
    let process = daemon.start_with(&settings);
    daemon.caught_up().await;
    // Mended, its end is the next thing that is told.
    there
        .batch_execute("alter table cloud.x drop constraint short")
        .await
        .unwrap();
    let retried = daemon.begin(&["quarantine", "retry", "--all"]).ended(LIMIT).await;
    assert!(retried.success());
    let told = hook.until(2, &daemon).await;
    assert_eq!(
        (&told[1]["kind"], &told[1]["state"]),
        (&"quarantine".into(), &"resolved".into())
    );
    assert!(process.terminate().await.success());
    assert_eq!(hook.taken().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_alert_goes_to_the_webhook_and_what_fails_is_told() {
    let site = Site::bare("alerts_test", "http://127.0.0.1:9/api", KEY, TABLE, "").await;
    let daemon = Daemon::of(&site, "store");
    let none = daemon.ask(&["alerts", "test"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("alerts.webhook"));
    let (hook, url) = Hook::start(0).await;
    let webhook = format!("alerts.webhook={url}");
    let sent = daemon.ask(&["alerts", "test", "--json", "--set", &webhook]);
    assert!(sent.status.success(), "{sent:?}");
    assert_eq!(hook.taken()[0]["kind"], "test");
    *hook.refusals.lock().unwrap() = 1;
    let failed = daemon.ask(&["alerts", "test", "--set", &webhook]);
    assert_eq!(failed.status.code(), Some(1));
    let told = String::from_utf8_lossy(&failed.stdout).into_owned();
    // The URL may hold a secret.
    assert!(told.contains("503") && !told.contains("room"), "{told}");
}

/// A server that prints each message's sender, receivers and text as a line of JSON.
const SMTP_SCRIPT: &str = r#"
import asyncio, json, sys
from aiosmtpd.controller import Controller
class Handler:
    async def handle_DATA(self, server, session, envelope):
        print(json.dumps([envelope.mail_from, envelope.rcpt_tos, envelope.content.decode()]), flush=True)
        return "250 taken"
controller = Controller(Handler(), hostname="127.0.0.1", port=int(sys.argv[1]))
controller.start()
print("ready", flush=True)
asyncio.new_event_loop().run_forever()
"#;

const SMTP_SERVER: &str = "aiosmtpd==1.4.6";

/// Installs the SMTP server into a folder of its own, once.
fn install(folder: &Path) -> Result<(), String> {
    let done = folder.join("installed");
    if std::fs::read_to_string(&done).is_ok_and(|text| text == SMTP_SERVER) {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    let (mut venv, mut pip) = (Command::new("python3"), Command::new(folder.join("bin/python")));
    venv.args(["-m", "venv"]).arg(folder);
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    pip.args(quiet).arg(SMTP_SERVER);
    for command in [&mut venv, &mut pip] {
        let output = command.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
    }
    std::fs::write(done, SMTP_SERVER).map_err(|error| error.to_string())
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_e_mail_arrives_at_an_smtp_server() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("smtp-server");
    if let Err(why) = install(&folder) {
        println!("skipped: the SMTP server cannot be installed: {why}");
        return;
    }
    let port = crate::support::postgres::free_port();
    let mut server = Command::new(folder.join("bin/python"));
    server
        .args(["-c", SMTP_SCRIPT, &port.to_string()])
        .stdout(Stdio::piped());
    let mut server = Killed(server.spawn().unwrap());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");

    let site = Site::bare("alerts_mail", "http://127.0.0.1:9/api", KEY, TABLE, "").await;
    let daemon = Daemon::of(&site, "store");
    let smtp = format!("alerts.smtp_url=smtp://127.0.0.1:{port}");
    let sent = daemon.ask(&[
        "alerts",
        "test",
        "--set",
        &smtp,
        "--set",
        "alerts.email_from=cloud-sync <sync@school.example>",
        "--set",
        "alerts.email_to=it@school.example, head@school.example",
    ]);
    assert!(sent.status.success(), "{sent:?}");
    let message = lines.next().unwrap().unwrap();
    let (from, to, content): (String, Vec<String>, String) = serde_json::from_str(&message).unwrap();
    assert_eq!(from, "sync@school.example");
    assert_eq!(to, ["it@school.example", "head@school.example"]);
    assert!(
        content.contains("Subject: [cloud-sync") && content.contains("This is a test"),
        "{content}"
    );
}
