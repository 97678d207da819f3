//! What an alert says.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::AlertKind;

/// Whether something is wrong, or over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AlertState {
    /// Somebody has to look.
    Problem,
    /// It is over.
    Resolved,
    /// Somebody tries whether alerts arrive.
    Test,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AlertMessage {
    pub(crate) kind: AlertKind,
    pub(crate) state: AlertState,
    /// When the problem began.
    pub(crate) since: Timestamp,
    /// When it ended; `None` while it lasts.
    pub(crate) until: Option<Timestamp>,
    pub(crate) text: String,
}

/// A message as a webhook gets it. `text` alone is what chat programs show.
#[derive(Debug, Serialize)]
pub(super) struct WebhookBody<'a> {
    pub(super) source: &'a str,
    pub(super) kind: &'static str,
    pub(super) state: AlertState,
    pub(super) since: String,
    pub(super) until: Option<String>,
    pub(super) text: String,
    /// The command that tells more.
    pub(super) next: &'static str,
}

impl AlertMessage {
    pub(super) fn problem(kind: AlertKind, since: Timestamp, text: String) -> Self {
        Self {
            kind,
            state: AlertState::Problem,
            since,
            until: None,
            text,
        }
    }

    pub(super) fn resolved(kind: AlertKind, since: Timestamp, until: Timestamp) -> Self {
        Self {
            kind,
            state: AlertState::Resolved,
            since,
            until: Some(until),
            text: format!("It is over: {}.", kind.title()),
        }
    }

    /// One that shows that alerts arrive.
    pub(crate) fn test(now: Timestamp) -> Self {
        Self {
            kind: AlertKind::Lag,
            state: AlertState::Test,
            since: now,
            until: None,
            text: "This is a test: alerts of cloud-sync arrive here.".to_owned(),
        }
    }

    fn kind_name(&self) -> &'static str {
        match self.state {
            AlertState::Test => "test",
            AlertState::Problem | AlertState::Resolved => self.kind.name(),
        }
    }

    /// The subject of an e-mail. `source` is the site's name.
    pub(super) fn subject(&self, source: &str) -> String {
        match self.state {
            AlertState::Problem => format!("[cloud-sync {source}] {}", self.kind.title()),
            AlertState::Resolved => format!("[cloud-sync {source}] over: {}", self.kind.title()),
            AlertState::Test => format!("[cloud-sync {source}] a test"),
        }
    }

    /// The text of an e-mail.
    pub(super) fn body(&self, source: &str) -> String {
        let mut text = format!("{}\n\nSite: {source}\n", self.text);
        match (self.state, self.until) {
            (AlertState::Test, _) => {}
            (_, None) => text.push_str(&format!("Since: {}\n", iso(self.since))),
            (_, Some(until)) => {
                text.push_str(&format!("From {} to {}\n", iso(self.since), iso(until)));
            }
        }
        if self.state == AlertState::Problem {
            text.push_str(&format!("\nMore: {}\n", self.kind.next()));
        }
        text
    }

    pub(super) fn webhook_body<'a>(&self, source: &'a str) -> WebhookBody<'a> {
        WebhookBody {
            source,
            kind: self.kind_name(),
            state: self.state,
            since: iso(self.since),
            until: self.until.map(iso),
            text: format!("{source}: {}", self.text),
            next: self.kind.next(),
        }
    }
}

fn iso(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_where_since_when_and_what_next() {
        let since: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let until: Timestamp = "2026-11-30T13:00:00Z".parse().unwrap();
        let problem = AlertMessage::problem(AlertKind::Quarantine, since, "3 rows are in quarantine.".into());
        assert_eq!(
            problem.subject("college"),
            "[cloud-sync college] rows are in quarantine"
        );
        assert_eq!(
            problem.body("college"),
            "3 rows are in quarantine.\n\nSite: college\nSince: 2026-11-30T12:00:00Z\n\nMore: cloud-sync quarantine list\n"
        );
        let over = AlertMessage::resolved(AlertKind::Quarantine, since, until);
        assert_eq!(
            serde_json::to_value(over.webhook_body("college")).unwrap(),
            serde_json::json!({
                "source": "college",
                "kind": "quarantine",
                "state": "resolved",
                "since": "2026-11-30T12:00:00Z",
                "until": "2026-11-30T13:00:00Z",
                "text": "college: It is over: rows are in quarantine.",
                "next": "cloud-sync quarantine list",
            })
        );
    }
}
