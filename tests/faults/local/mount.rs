//! A media root on a file system that never answers.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::process::Daemon;
use crate::support::says;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect, entity};

/// A mounted FUSE file system whose other end is held by a shell that answers nothing.
struct DeadMount {
    holder: Child,
    folder: PathBuf,
}

impl DeadMount {
    /// `None` if nothing can be mounted; a line on stdout says so then.
    fn over(folder: &Path) -> Option<Self> {
        let script = "exec 3<>/dev/fuse && mount -i -t fuse dead \"$0\" -o \
             fd=3,rootmode=40000,user_id=0,group_id=0 && \
                      echo mounted && read -r _";
        let mut holder = Command::new("sh")
            .args(["-c", script])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let _ = BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line);
        let mount = Self {
            holder,
            folder: folder.to_owned(),
        };
        if line.trim() == "mounted" {
            return Some(mount);
        }
        eprintln!(
            "skipped: this process may not mount a FUSE file system (it must be root, \
             and /dev/fuse must be there)"
        );
        None
    }
}

impl Drop for DeadMount {
    /// What hangs in it fails then.
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.folder)
            .stderr(Stdio::null())
            .status();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_wait_for_no_file_system_that_does_not_answer() {
    let cloud = Cloud::start("mount").await;
    let files = "files = [{ column = \"photo\", url_column = \"url\", directory = \"photos\" }]";
    let config = entity("x", "t", &["id"], files) + &entity("y", "u", &["id"], "");
    let tables = "create table t (id int primary key, photo text); create table u (id int primary key)";
    let site = Site::bare("mount", &cloud.url, KEY, tables, &config).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    std::fs::write(site.media().join("a.jpg"), "a").unwrap();
    site.run("insert into t values (1, 'a.jpg'); insert into u values (1)")
        .await;
    daemon
        .until("uploaded", LIMIT, |status| status.files.uploaded == 1)
        .await;
    let there = connect(&cloud.database_url).await;
    let arrived = async |rows: i64| {
        let start = std::time::Instant::now();
        let sql = "select least((select count(*) from cloud.x), (select count(*) from cloud.y))";
        while there.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) < rows {
            assert!(start.elapsed() < LIMIT, "{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // When the media root's file system stops answering under a running replicator,
    std::fs::write(site.media().join("b.jpg"), "b").unwrap();
    let Some(mount) = DeadMount::over(&site.media()) else {
        return;
    };
    for id in 2..6 {
        site.run(&format!(
            "insert into t values ({id}, 'b.jpg'); insert into u values ({id})"
        ))
        .await;
        // then rows arrive, those too that name files,
        arrived(id).await;
    }
    crate::support::commit_latency::print_commit_latency("a dead mount", &site, &cloud, "u", "y").await;
    // `check` says what is wrong, and the replicator ends when it gets the signal.
    let check = daemon.ask(&["check"]);
    assert!(!check.status.success(), "{check:?}");
    says(
        &String::from_utf8_lossy(&check.stdout),
        &["media root", "does not answer", "mount it again"],
    );
    assert!(process.terminate().await.success());
    // One that starts then replicates too,
    let process = daemon.start();
    site.run("insert into t values (6, 'b.jpg'); insert into u values (6)")
        .await;
    arrived(6).await;
    // and files go on once the file system is there again.
    drop(mount);
    daemon
        .until("uploaded", LIMIT, |status| status.files.uploaded == 2)
        .await;
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    site.assert_equal(&cloud).await;
}
