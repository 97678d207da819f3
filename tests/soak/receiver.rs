//! The receiver as a process of its own, which the soak kills and starts again.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::site::{Cloud, KEY, SITE};
use crate::tenant;

/// The receiver as a process of its own.
pub(super) struct Receiver {
    listen: String,
    database_url: String,
    files: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Receiver {
    pub(super) fn new(cloud: &Cloud, log: PathBuf) -> Self {
        Self {
            listen: cloud.address().to_string(),
            database_url: cloud.database_url.clone(),
            files: cloud.files.clone(),
            log,
            child: None,
        }
    }

    /// Starts it where it does not run: it ends by itself where its database does not answer at its start.
    pub(super) fn ensure(&mut self) {
        if let Some(child) = &mut self.child
            && child.try_wait().expect("a child can be asked").is_none()
        {
            return;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.expect("the log can be written");
        let child = Command::new(env!("CARGO_BIN_EXE_cloud-sync"))
            .args([
                "receiver",
                "--listen",
                &self.listen,
                "--database-url",
                &self.database_url,
            ])
            .arg("--files")
            .arg(&self.files)
            .args(["--set", "receiver.history=true"])
            .current_dir(self.log.parent().expect("a folder"))
            .env_clear()
            .env(
                "CLOUD_SYNC_RECEIVER_KEYS",
                format!("{SITE}={KEY};{}={}", tenant::SITE, tenant::KEY),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the receiver starts"));
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill();
    }
}
