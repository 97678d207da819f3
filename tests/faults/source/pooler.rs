//! A site whose database is behind PgBouncer.

use std::process::{Child, Command, Stdio};

use cloud_sync::source::identity::OutboxDeclaration;
use cloud_sync::source::install;

use crate::support::postgres::{Server, free_port, shell_for};
use crate::support::process::Daemon;
use crate::support::says;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

/// PgBouncer before the run's server, all else at its defaults.
struct Pooler {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Pooler {
    /// `None` if PgBouncer is not installed; a line on stdout says so then.
    async fn start(mode: &str) -> Option<Self> {
        if !Command::new("pgbouncer")
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
        {
            eprintln!("skipped: there is no pgbouncer on this machine (`make pgbouncer` installs it)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (_, server) = Server::get().socket();
        let port = free_port();
        let at = folder.path().join("pgbouncer.ini");
        let mode = if mode == "session" {
            String::new()
        } else {
            format!("pool_mode = {mode}\n")
        };
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={server} user=postgres\n[pgbouncer]\nlisten_addr = \
             127.0.0.1\n\
             listen_port = {port}\nauth_type = any\nunix_socket_dir =\n{mode}"
        );
        std::fs::write(&at, text).unwrap();
        let child = shell_for(folder.path())
            .args(["-c", "exec pgbouncer \"$0\""])
            .arg(&at)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pooler = Self {
            child,
            port,
            _folder: folder,
        };
        let start = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < LIMIT, "pgbouncer does not listen");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Some(pooler)
    }

    /// The database as the pooler gives it.
    fn url(&self, database: &str) -> String {
        let (_, name) = database.rsplit_once('/').unwrap();
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TABLE: &str = "create table t (id int primary key, v text)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_keeps_sessions_serves() {
    let Some(pooler) = Pooler::start("session").await else {
        return;
    };
    let cloud = Cloud::start("pooled").await;
    let database = Server::get().database("pooled_site").await;
    let config = entity("x", "t", &["id"], "");
    let site = Site::at(pooler.url(&database), &cloud.url, KEY, TABLE, &config).await;
    let daemon = Daemon::of(&site, "store");
    for command in ["init", "check"] {
        let output = daemon.ask(&[command]);
        assert!(output.status.success(), "{command}: {output:?}");
    }
    let process = daemon.start();
    site.run("insert into t select n, 'v' from generate_series(1, 100) n")
        .await;
    let there = connect(&cloud.database_url).await;
    let start = std::time::Instant::now();
    while there
        .query_one(
            "select count(*) from pg_tables where schemaname = 'cloud' and tablename = 'x'",
            &[],
        )
        .await
        .unwrap()
        .get::<_, i64>(0)
        == 0
        || there
            .query_one("select count(*) from cloud.x", &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            < 100
    {
        assert!(start.elapsed() < LIMIT, "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    site.assert_equal(&cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_gives_each_transaction_another_session_is_refused() {
    let Some(pooler) = Pooler::start("transaction").await else {
        return;
    };
    let cloud = Cloud::start("transactions").await;
    let database = Server::get().database("transactions_site").await;
    let config = entity("x", "t", &["id"], "");
    let mut site = Site::at(database.clone(), &cloud.url, KEY, TABLE, &config).await;
    // Given capture that was installed directly, and a configuration that names the pooler since
    site.init().await;
    site.reconfigure(&database, &pooler.url(&database));
    let words = ["pooler", "connect directly", "source.database_url"];
    // then `init`, `check` and `run` say so.
    let url = site.settings.require_database_url().unwrap();
    let refused = install::init(url, &site.settings.catalogue, OutboxDeclaration::Nothing).await;
    says(&refused.unwrap_err().to_string(), &words);
    let daemon = Daemon::of(&site, "store");
    let check = daemon.ask(&["check"]);
    assert!(!check.status.success(), "{check:?}");
    says(&String::from_utf8_lossy(&check.stdout), &words);
    let status = daemon.start().ended(LIMIT).await;
    assert_eq!(status.code(), Some(2), "{}", daemon.log());
    says(&daemon.log(), &words);
}
