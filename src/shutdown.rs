//! Signals: the first SIGTERM or SIGINT asks every task to finish, a second one ends the program at once.
//! SIGHUP asks the program to read its settings again.
//!
//! A write beyond the limit of a file's size sends SIGXFSZ, which ends a program that does not handle it.
//! This program handles it, so that the write fails, as it does on a full disk.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Its number on Linux.
const SIGXFSZ: i32 = 25;

/// Listens for signals as long as it lives.
#[derive(Debug)]
pub struct Shutdown {
    token: CancellationToken,
    listener: JoinHandle<()>,
    hangup: Option<Signal>,
    _file_size_limit: Signal,
}

impl Shutdown {
    /// Starts to listen.
    ///
    /// # Errors
    /// The operating system refuses a signal handler.
    pub fn listen() -> Result<Self> {
        let terminate = listen_for(SignalKind::terminate())?;
        let interrupt = listen_for(SignalKind::interrupt())?;
        let token = CancellationToken::new();
        let listener = tokio::spawn(handle_signals(terminate, interrupt, token.clone()));
        Ok(Self {
            token,
            listener,
            hangup: Some(listen_for(SignalKind::hangup())?),
            _file_size_limit: listen_for(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// The stream of SIGHUPs; `None` from the second call on.
    pub fn hangups(&mut self) -> Option<Signal> {
        self.hangup.take()
    }

    /// The token that every task watches besides its work.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::local("listen for signals", error))
}

async fn handle_signals(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    let name = next_signal(&mut terminate, &mut interrupt).await.0;
    tracing::info!(signal = name, "shutting down; a second signal ends it at once");
    token.cancel();
    let (name, number) = next_signal(&mut terminate, &mut interrupt).await;
    tracing::warn!(signal = name, "ending at once");
    // The exit code that a shell reports for a program that a signal ended.
    std::process::exit(128 + number);
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
        _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_first_signal_asks_every_task_to_finish() {
        let shutdown = Shutdown::listen().unwrap();
        let token = shutdown.token();
        assert!(!token.is_cancelled());
        // The shell's own kill: not every system has the program.
        let sent = Command::new("sh")
            .args(["-c", "kill -TERM $0", &std::process::id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        tokio::time::timeout(Duration::from_secs(10), token.cancelled())
            .await
            .expect("the signal is heard");
    }
}
