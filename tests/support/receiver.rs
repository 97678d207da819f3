//! The real receiver as a process of its own, in the place of a [`Cloud`]'s.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process::signal;
use super::site::{Cloud, LIMIT, SITE};

/// The receiver's place: its address, settings and log. It may be killed and started any number of times, and
/// is killed when it is dropped.
pub(crate) struct ReceiverProcess {
    pub(crate) address: String,
    program: PathBuf,
    child: Option<Child>,
    folder: PathBuf,
    /// The settings but for the keys.
    settings: String,
    log_level: &'static str,
    _folder: Option<tempfile::TempDir>,
}

impl ReceiverProcess {
    /// Takes the place of the cloud's own receiver, and runs: same port, database and files.
    pub(crate) async fn replace(cloud: &mut Cloud, keys: &[&str]) -> Self {
        cloud.away().await;
        let folder = tempfile::tempdir().unwrap();
        let mut process = Self::new(cloud, folder.path().to_owned(), &[(SITE, keys)]);
        process._folder = Some(folder);
        process.log_level = "debug";
        process.ensure();
        process.logged("the receiver listens").await;
        process
    }

    /// In the place of the cloud's own receiver, with its settings and its log in `folder`; it does not run
    /// yet.
    pub(crate) fn new(cloud: &Cloud, folder: PathBuf, keys: &[(&str, &[&str])]) -> Self {
        let address = cloud.address().to_string();
        let settings = format!(
            "[receiver]\nlisten = {address:?}\ndatabase_url = {:?}\nfiles = {:?}\nhistory = true\n",
            cloud.database_url,
            cloud.files.display().to_string(),
        );
        let process = Self {
            address,
            program: env!("CARGO_BIN_EXE_cloud-sync").into(),
            child: None,
            folder,
            settings,
            log_level: "info",
            _folder: None,
        };
        process.rekey(keys);
        process
    }

    /// Lets another program be the receiver.
    #[allow(dead_code, reason = "for the tests")]
    pub(crate) fn set_program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// Starts it if it does not run: it ends if its database does not answer at its start.
    pub(crate) fn ensure(&mut self) {
        if let Some(child) = &mut self.child
            && child.try_wait().unwrap().is_none()
        {
            return;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let child = Command::new(&self.program)
            .args(["receiver", "--config"])
            .arg(self.config_file())
            .args(["--log", self.log_level])
            .current_dir(&self.folder)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// SIGKILL, if it runs.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("receiver.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("receiver.log")
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("the receiver runs").id()
    }

    /// Writes these keys into its settings; it gets no signal.
    pub(crate) fn rekey(&self, keys: &[(&str, &[&str])]) {
        self.configure(&format!("{}{}", self.settings, table(keys)));
    }

    /// Writes this as its settings; it gets no signal.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.config_file(), text).unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
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
        super::process::peak_memory(self.pid())
    }
}

impl Drop for ReceiverProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

fn table(sites: &[(&str, &[&str])]) -> String {
    let lines = sites.iter().map(|(site, keys)| format!("{site} = {keys:?}\n"));
    format!("[receiver.keys]\n{}", lines.collect::<String>())
}
