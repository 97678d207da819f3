//! Tells the service manager, systemd, how the program is: that it is ready, what is so in one sentence, that
//! it is alive, that it reads its settings again, that it stops.
//!
//! It tells by `sd_notify`, and only if `NOTIFY_SOCKET` says where. What cannot be told changes nothing: the
//! service manager acts on what it does not hear.
//!
//! The sign of life goes out a third of `WatchdogSec` apart, and only if all tasks answer: see
//! [`crate::liveness`]. A cloud or a database that is away is no reason to withhold it.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::liveness::Liveness;
use crate::supervise::pause_or_stop;

/// How often the sentence is looked at. It is told if it has changed.
const SENTENCE_INTERVAL: Duration = Duration::from_secs(5);

/// Tells that the program works: it replicates or tries to, it serves.
pub(super) fn notify_ready() {
    notify(&[NotifyState::Ready]);
}

/// Tells that the settings are being read again; [`notify_ready`] tells that this is over.
pub(super) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        // Without the time, systemd 253 and later would wait for it for ever.
        Err(error) => tracing::debug!(%error, "the service manager is not told of the reload"),
    }
}

/// Tells what is so, gives signs of life, and tells when `shutdown` comes. It goes on until it is dropped:
/// signs of life are wanted until the end.
pub(super) async fn keep_informed(
    liveness: &Liveness,
    shutdown: &CancellationToken,
    sentence: impl Fn() -> String,
) -> Infallible {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let (never, ()) = tokio::join!(
        give_signs_of_life(liveness),
        tell_sentence_and_stop(shutdown, sentence)
    );
    never
}

#[expect(clippy::infinite_loop, reason = "it is dropped with the program's work")]
async fn give_signs_of_life(liveness: &Liveness) -> Infallible {
    let Some(watchdog) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let interval = watchdog / 3;
    loop {
        let silent = liveness.silent_tasks(interval).await;
        if silent.is_empty() {
            notify(&[NotifyState::Watchdog]);
            tokio::time::sleep(interval).await;
        } else {
            tracing::error!(
                tasks = silent.join(", "),
                "tasks do not answer: the service manager gets no sign of life"
            );
        }
    }
}

async fn tell_sentence_and_stop(shutdown: &CancellationToken, sentence: impl Fn() -> String) {
    let mut told = String::new();
    loop {
        let text = one_line(&sentence());
        if text != told {
            notify(&[NotifyState::Status(&text)]);
            told = text;
        }
        if pause_or_stop(SENTENCE_INTERVAL, shutdown).await {
            break;
        }
    }
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("Stopping: what is in progress is finished."),
    ]);
}

/// The text without line ends and other control characters: another line would be another message, and what
/// an error says may come from the cloud.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_no_second_message() {
        assert_eq!(
            one_line("It is away.\nMAINPID=1\r\u{85}"),
            "It is away. MAINPID=1  "
        );
    }
}
