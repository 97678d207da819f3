//! Sends messages by each channel that is set: each has a queue of its own, so that one that fails holds up no
//! other.

use std::collections::VecDeque;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::AlertMessage;
use super::email::EmailChannel;
use crate::config::AlertSettings;
use crate::error::{Error, Kind, Result, chain};
use crate::retry::{Backoff, FailureLog};

/// How long the webhook's server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The waits before a message is tried again.
const WAITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// Messages that wait for a channel, at most: the oldest go.
const MOST_WAITING: usize = 50;

/// The channels that the settings name.
pub(crate) struct AlertChannels(Vec<AlertChannel>);

struct AlertChannel {
    name: &'static str,
    sink: AlertSink,
    queue: VecDeque<AlertMessage>,
    backoff: Backoff,
    log: FailureLog,
    not_before: Option<Instant>,
}

enum AlertSink {
    Webhook {
        http: reqwest::Client,
        url: SecretString,
    },
    Email(Box<EmailChannel>),
}

/// What became of a message that was sent by a channel.
#[derive(Debug, serde::Serialize)]
pub(crate) struct ChannelReport {
    /// The channel.
    pub(crate) channel: &'static str,
    /// Why it failed; null if it did not.
    pub(crate) error: Option<String>,
}

impl AlertChannels {
    /// The channels of these settings; there may be none.
    ///
    /// # Errors
    /// A configuration error.
    pub(crate) fn new(settings: &AlertSettings) -> Result<Self> {
        let mut channels = Vec::new();
        if let Some(url) = &settings.webhook {
            let http = reqwest::Client::builder()
                .user_agent(concat!("cloud-sync/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .timeout(TIMEOUT)
                .build()
                .map_err(|error| Error::config("send alerts to the webhook", chain(&error)))?;
            let url = url.clone();
            channels.push(AlertChannel::new("webhook", AlertSink::Webhook { http, url }));
        }
        if let Some(email) = &settings.email {
            let sink = AlertSink::Email(Box::new(EmailChannel::new(email)?));
            channels.push(AlertChannel::new("e-mail", sink));
        }
        Ok(Self(channels))
    }

    /// Whether none is set.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Queues messages for each channel.
    pub(crate) fn queue(&mut self, messages: &[AlertMessage]) {
        for channel in &mut self.0 {
            channel.queue.extend(messages.iter().cloned());
            let surplus = channel.queue.len().saturating_sub(MOST_WAITING);
            channel.queue.drain(..surplus);
        }
    }

    /// Whether no message waits.
    pub(crate) fn have_sent_all(&self) -> bool {
        self.0.iter().all(|channel| channel.queue.is_empty())
    }

    /// Sends what waits, as far as each channel takes it now.
    pub(crate) async fn send_waiting(&mut self, source: &str) {
        let channels = self.0.iter_mut();
        futures::future::join_all(channels.map(|channel| channel.send_waiting(source))).await;
    }

    /// Sends one message by each channel, and returns what became of it.
    pub(crate) async fn send(&self, source: &str, message: &AlertMessage) -> Vec<ChannelReport> {
        let channels = self.0.iter().map(async |channel| ChannelReport {
            channel: channel.name,
            error: channel
                .sink
                .send(source, message)
                .await
                .err()
                .map(|error| error.to_string()),
        });
        futures::future::join_all(channels).await
    }
}

impl AlertChannel {
    fn new(name: &'static str, sink: AlertSink) -> Self {
        Self {
            name,
            sink,
            queue: VecDeque::new(),
            backoff: Backoff::within(WAITS.0, WAITS.1),
            log: FailureLog::new("alerts"),
            not_before: None,
        }
    }

    async fn send_waiting(&mut self, source: &str) {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        while let Some(message) = self.queue.front() {
            if let Err(error) = self.sink.send(source, message).await {
                self.log.failed(&error);
                self.not_before = Some(Instant::now() + self.backoff.next(None));
                return;
            }
            self.queue.pop_front();
            self.backoff.reset();
            self.log.recovered();
            self.not_before = None;
        }
    }
}

impl AlertSink {
    async fn send(&self, source: &str, message: &AlertMessage) -> Result<()> {
        match self {
            Self::Email(email) => email.send(source, message).await,
            Self::Webhook { http, url } => {
                let failed = |cause: String| Error::new(Kind::Local, "send an alert to the webhook", cause);
                let request = http.post(url.expose_secret()).json(&message.webhook_body(source));
                let answer = request
                    .send()
                    .await
                    // The URL may hold a secret.
                    .map_err(|error| failed(chain(&error.without_url())))?;
                match answer.status() {
                    status if status.is_success() => Ok(()),
                    status => Err(failed(format!("its server answered {status}"))),
                }
            }
        }
    }
}
