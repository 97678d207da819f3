//! Processes that are measured: started, looked at in `/proc`, and ended.
//!
//! None outlives this program: the kernel ends them with the thread that started them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::Outcome;

/// The unit of the times in `/proc/PID/stat`; every Linux of today has this one.
const TICKS_PER_SECOND: f64 = 100.0;

const END_LIMIT: Duration = Duration::from_secs(60);

/// A command that the kernel ends when this program ends, in an environment that says nothing but where
/// programs are.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end; what it wrote, unless it failed.
pub(crate) async fn finished(what: &str, command: &mut Command) -> Outcome<Output> {
    let output = command
        .output()
        .await
        .map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{what} ended with {}: {}", output.status, stderr.trim()).into())
}

/// A running process, killed when it is dropped.
pub(crate) struct Process {
    what: &'static str,
    child: Child,
    pid: u32,
}

impl Process {
    pub(crate) fn start(what: &'static str, command: &mut Command) -> Outcome<Self> {
        let child = command
            .spawn()
            .map_err(|error| format!("start {what}: {error}"))?;
        let pid = child.id().ok_or_else(|| format!("{what} has no process"))?;
        Ok(Self { what, child, pid })
    }

    /// An error if it has ended.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("{} ended with {status}", self.what).into()),
        }
    }

    /// SIGTERM, and waits until it has ended.
    pub(crate) async fn end(mut self) -> Outcome<()> {
        let kill = ["-c", "kill -TERM $0", &self.pid.to_string()];
        Command::new("sh").args(kill).status().await?;
        match tokio::time::timeout(END_LIMIT, self.child.wait()).await {
            Ok(status) => {
                status?;
                Ok(())
            }
            Err(_) => Err(format!("{} did not end within {END_LIMIT:?}", self.what).into()),
        }
    }

    /// Seconds of CPU so far.
    pub(crate) fn cpu(&self) -> f64 {
        stat(self.pid).map_or(0.0, |stat| stat.own)
    }

    /// MiB of memory that it had resident at its peak.
    pub(crate) fn peak(&self) -> f64 {
        peak(self.pid)
    }

    /// Lets its peak begin again at what it has now.
    pub(crate) fn reset_peak(&self) -> Outcome<()> {
        let file = format!("/proc/{}/clear_refs", self.pid);
        std::fs::write(&file, "5").map_err(|error| format!("{file}: {error}").into())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

/// MiB of memory that a process had resident at its peak.
pub(crate) fn peak(pid: u32) -> f64 {
    status(pid, "VmHWM:") / 1024.0
}

/// MiB of memory that a process has resident.
pub(crate) fn resident(pid: u32) -> f64 {
    status(pid, "VmRSS:") / 1024.0
}

/// How often the threads of a process have gone to sleep so far.
pub(crate) fn sleeps(pid: u32) -> f64 {
    let switches = |task: &Path| field(&task.join("status"), "voluntary_ctxt_switches:");
    tasks(pid).iter().map(|task| switches(task)).sum()
}

/// Seconds of CPU of the threads of a process, by the scheduler's own clock: ticks are too coarse where
/// little is done.
pub(crate) fn scheduled(pid: u32) -> f64 {
    let nanoseconds = |task: &Path| {
        let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    let threads: Option<f64> = tasks(pid).iter().map(|task| nanoseconds(task)).sum();
    threads.map_or_else(
        || stat(pid).map_or(0.0, |stat| stat.own),
        |nanoseconds| nanoseconds / 1e9,
    )
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .map(|task| task.path())
        .collect()
}

fn status(pid: u32, name: &str) -> f64 {
    field(Path::new(&format!("/proc/{pid}/status")), name)
}

/// A number in one of the kernel's lists; 0 where there is none.
fn field(path: &Path, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// Seconds of CPU of a process, of all its children that live, and of all that have ended.
pub(crate) fn cpu_of_family(parent: u32) -> f64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let family = pids.filter_map(|pid| {
        let stat = stat(pid)?;
        (pid == parent || stat.parent == parent).then_some(stat.own + stat.ended)
    });
    family.sum()
}

struct Stat {
    parent: u32,
    /// Seconds of CPU of its own, and of its children that have ended.
    own: f64,
    ended: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name comes first and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |index: usize| Some(fields.get(index)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: seconds(11)? + seconds(12)?,
        ended: seconds(13)? + seconds(14)?,
    })
}
