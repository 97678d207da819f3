//! The real binary as a daemon: started in a site's folder, its log in a file, ended by a signal, asked over
//! its operator API and by the command line.

use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use cloud_sync::config::Settings;
use cloud_sync::control::StatusReport;
use cloud_sync::control::client::ControlClient;

use super::postgres::free_port;
use super::site::{LIMIT, Site};

/// Where the daemon of a site runs: its store, its port and its log. It may be started any number of times.
pub(crate) struct Daemon {
    program: PathBuf,
    /// The site's settings, with this daemon's store and port.
    settings: Settings,
    folder: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// The daemon of a site, with its store in the folder `store` of the site's.
    pub(crate) fn of(site: &Site, store: &str) -> Self {
        let mut settings = site.settings.clone();
        settings.store.path = site.folder.path().join(store);
        settings.control.listen = ([127, 0, 0, 1], free_port()).into();
        Self {
            program: env!("CARGO_BIN_EXE_cloud-sync").into(),
            settings,
            folder: site.folder.path().to_owned(),
            log: site.folder.path().join(format!("{store}.log")),
        }
    }

    /// Lets another program be the daemon.
    #[allow(dead_code, reason = "for the tests")]
    pub(crate) fn set_program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// The folder of the checkpoint store.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.settings.store.path.join("checkpoint")
    }

    /// Where its operator API listens.
    pub(crate) fn listen(&self) -> std::net::SocketAddr {
        self.settings.control.listen
    }

    /// A command of the command line, with the same settings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .arg("--set")
            .arg(format!("control.listen={}", self.settings.control.listen))
            .arg("--set")
            .arg(format!("store.path={}", self.settings.store.path.display()))
            .current_dir(&self.folder)
            .env_clear()
            .stdin(Stdio::null());
        command
    }

    /// Starts it, with these settings over the site's. Its log goes on where the last run's ended.
    pub(crate) fn start_with(&self, overrides: &[&str]) -> Process<'_> {
        self.spawn(&["run"], overrides, |_| {})
    }

    /// Starts it as `adjust` leaves the command: in another environment, or with its output elsewhere.
    pub(crate) fn start_under(&self, overrides: &[&str], adjust: impl FnOnce(&mut Command)) -> Process<'_> {
        self.spawn(&["run"], overrides, adjust)
    }

    /// Starts it as [`Daemon::start_with`]; it aborts at this point (see `cloud_sync::abort`).
    pub(crate) fn start_to_abort(&self, point: &str, overrides: &[&str]) -> Process<'_> {
        self.spawn(&["run"], overrides, aborting(point))
    }

    /// Starts another command of the command line.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Process<'_> {
        self.spawn(arguments, &[], |_| {})
    }

    /// Starts another command of the command line, which aborts at this point.
    pub(crate) fn ask_to_abort(&self, point: &str, arguments: &[&str]) -> Process<'_> {
        self.spawn(arguments, &[], aborting(point))
    }

    fn spawn(
        &self,
        arguments: &[&str],
        overrides: &[&str],
        adjust: impl FnOnce(&mut Command),
    ) -> Process<'_> {
        let log: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let mut command = self.command(arguments);
        for over in overrides {
            command.args(["--set", over]);
        }
        command.stdout(log.try_clone().unwrap()).stderr(log);
        adjust(&mut command);
        let child = command.spawn().unwrap();
        Process { daemon: self, child }
    }

    pub(crate) fn start(&self) -> Process<'_> {
        self.start_with(&[])
    }

    /// Everything that its runs have logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs another command of the command line, with the same settings.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Its status over the operator API; none while it does not answer.
    pub(crate) async fn status(&self) -> Option<StatusReport> {
        ControlClient::new(&self.settings)
            .unwrap()
            .status()
            .await
            .ok()
            .flatten()
    }

    /// The HTTP status that `/healthz` answers.
    pub(crate) async fn health(&self) -> u16 {
        self.healthz().await.0
    }

    /// The HTTP status that `/healthz` answers, and its text.
    pub(crate) async fn healthz(&self) -> (u16, String) {
        let url = format!("http://{}/healthz", self.settings.control.listen);
        let answer = reqwest::get(url).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Waits until the running daemon's status is so.
    pub(crate) async fn until(
        &self,
        what: &str,
        limit: Duration,
        so: impl Fn(&StatusReport) -> bool,
    ) -> StatusReport {
        let start = Instant::now();
        loop {
            let status = self.status().await;
            if let Some(status) = status.as_ref().filter(|status| so(status)) {
                return status.clone();
            }
            assert!(
                start.elapsed() < limit,
                "not {what} within {limit:?}: {status:#?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until nothing waits.
    pub(crate) async fn caught_up(&self) -> StatusReport {
        self.until("caught up", LIMIT, |status| {
            status.state == cloud_sync::control::status::ReplicatorState::Replicating
                && status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await
    }
}

/// Lets a command abort at this point.
fn aborting(point: &str) -> impl FnOnce(&mut Command) {
    move |command| {
        command.env("CLOUD_SYNC_ABORT", point);
    }
}

/// A running daemon, killed when it is dropped.
pub(crate) struct Process<'a> {
    daemon: &'a Daemon,
    child: Child,
}

impl Process<'_> {
    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        assert!(
            self.child.try_wait().unwrap().is_none(),
            "it had ended already:\n{}",
            self.daemon.log()
        );
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How it ended, if it has.
    #[allow(dead_code, reason = "for the soak")]
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGTERM, and the exit status once it has ended.
    pub(crate) async fn terminate(self) -> ExitStatus {
        self.signal("TERM");
        self.ended(LIMIT).await
    }

    /// Its number.
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Its exit status once it has ended, which it must within `limit`.
    pub(crate) async fn ended(mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                start.elapsed() < limit,
                "it did not end within {limit:?}:\n{}",
                self.daemon.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until it has aborted at its point.
    pub(crate) async fn aborted(self) {
        let daemon = self.daemon;
        let status = self.ended(LIMIT).await;
        // SIGABRT.
        assert_eq!(status.signal(), Some(6), "{status}:\n{}", daemon.log());
    }

    /// Bytes of memory that it had resident at its peak.
    pub(crate) fn peak_memory(&self) -> u64 {
        peak_memory(self.child.id())
    }

    /// The processor time that it has used.
    pub(crate) fn processor_time(&self) -> Duration {
        processor_time(self.child.id())
    }
}

/// The processor time that a process has used, of all its threads.
fn processor_time(pid: u32) -> Duration {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    // Of the user and of the system, in hundredths of a second: fields 14 and 15.
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Sends a process a signal, by its name without `SIG`. The shell does it: not every system has the program
/// `kill`.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = Command::new("sh")
        .args(["-c", "kill -$0 $1", name, &pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success(), "SIG{name} to {pid}");
}

/// Bytes of memory that a process had resident at its peak.
pub(crate) fn peak_memory(pid: u32) -> u64 {
    let path = Path::new("/proc").join(pid.to_string()).join("status");
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kilobytes * 1024
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
