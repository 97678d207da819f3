//! The real receiver as a process of its own, in the place of a [`Cloud`]'s.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process::signal;
use super::site::{Cloud, LIMIT, SITE};

/// A running receiver, killed when it is dropped.
pub(crate) struct ReceiverProcess {
    pub(crate) address: String,
    child: Child,
    config: PathBuf,
    log: PathBuf,
    listen: String,
    _folder: tempfile::TempDir,
}

impl ReceiverProcess {
    /// Takes the place of the cloud's own receiver: same port, database and files.
    pub(crate) async fn replace(cloud: &mut Cloud, keys: &[&str]) -> Self {
        cloud.away().await;
        let folder = tempfile::tempdir().unwrap();
        let address = cloud
            .url
            .trim_start_matches("http://")
            .trim_end_matches("/api")
            .to_owned();
        let listen = format!(
            "[receiver]\nlisten = {address:?}\ndatabase_url = {:?}\nfiles = {:?}\nhistory = true\n",
            cloud.database_url,
            cloud.files.display().to_string(),
        );
        let (config, log) = (folder.path().join("cloud.toml"), folder.path().join("log"));
        std::fs::write(&config, format!("{listen}{}", table(&[(SITE, keys)]))).unwrap();
        let output = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_cloud-sync"))
            .args(["receiver", "--config"])
            .arg(&config)
            .args(["--log", "debug"])
            .current_dir(folder.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let process = Self {
            address,
            child,
            config,
            log,
            listen,
            _folder: folder,
        };
        process.logged("the receiver listens").await;
        process
    }

    /// Writes these keys into its settings; it is not told.
    pub(crate) fn rekey(&self, keys: &[(&str, &[&str])]) {
        std::fs::write(&self.config, format!("{}{}", self.listen, table(keys))).unwrap();
    }

    /// Writes this as its settings; it is not told.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(&self.config, text).unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log holds these words.
    pub(crate) async fn logged(&self, words: &str) {
        let start = Instant::now();
        while !self.log().contains(words) {
            assert!(start.elapsed() < LIMIT, "no {words:?} in\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Bytes of memory that it had resident at its peak.
    pub(crate) fn peak_memory(&self) -> u64 {
        super::process::peak_memory(self.child.id())
    }
}

impl Drop for ReceiverProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn table(sites: &[(&str, &[&str])]) -> String {
    let lines = sites.iter().map(|(site, keys)| format!("{site} = {keys:?}\n"));
    format!("[receiver.keys]\n{}", lines.collect::<String>())
}
