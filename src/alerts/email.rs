//! Alerts by e-mail, through the SMTP server of the settings.

use std::time::Duration;

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use secrecy::ExposeSecret;
use url::Url;

use super::AlertMessage;
use crate::config::EmailAlerts;
use crate::error::{Error, Kind, Result};

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A connection to the SMTP server, and the addresses.
pub(super) struct EmailChannel {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl EmailChannel {
    /// For these settings. Nothing is connected yet.
    ///
    /// # Errors
    /// A configuration error: an address or the URL is none, or a password would go without encryption.
    pub(super) fn new(settings: &EmailAlerts) -> Result<Self> {
        let operation = "send alerts by e-mail";
        let invalid = |setting: &str, why: String| Error::config(operation, format!("{setting} {why}"));
        let address = |setting: &str, text: &str| {
            text.parse::<Mailbox>()
                .map_err(|error| invalid(setting, format!("is no e-mail address: {error}")))
        };
        let url = settings.smtp_url.expose_secret();
        must_encrypt(url)?;
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url)
            // The error may quote the URL, and with it the password.
            .map_err(|_| invalid("alerts.smtp_url", "is no URL of an SMTP server".to_owned()))?
            .timeout(Some(TIMEOUT))
            .build();
        Ok(Self {
            transport,
            from: address("alerts.email_from", &settings.from)?,
            to: settings
                .to
                .iter()
                .map(|to| address("alerts.email_to", to))
                .collect::<Result<_>>()?,
        })
    }

    /// Sends a message to all addresses.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn send(&self, source: &str, message: &AlertMessage) -> Result<()> {
        let mut builder = Message::builder()
            .from(self.from.clone())
            .subject(message.subject(source))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            builder = builder.to(to.clone());
        }
        let failed = |cause: String| Error::new(Kind::Local, "send an alert by e-mail", cause);
        let email = builder
            .body(message.body(source))
            .map_err(|error| failed(error.to_string()))?;
        let sent = self.transport.send(email).await;
        sent.map(drop).map_err(|error| {
            failed(crate::error::chain(&error)).remedy("see alerts.smtp_url, and the mail server's log")
        })
    }
}

/// Refuses a password that would go over the network without encryption.
fn must_encrypt(text: &str) -> Result<()> {
    let Ok(url) = Url::parse(text) else { return Ok(()) };
    let is_local = match url.host_str() {
        Some("localhost") | None => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback()),
    };
    let is_required = url
        .query_pairs()
        .any(|(name, value)| name == "tls" && value == "required");
    if url.scheme() == "smtp" && url.password().is_some() && !is_local && !is_required {
        return Err(Error::config(
            "send alerts by e-mail",
            "the password of alerts.smtp_url would go without encryption",
        )
        .remedy("write smtps://user:password@host, or smtp://user:password@host:587?tls=required"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_goes_encrypted_or_stays_on_this_machine() {
        for text in [
            "smtps://u:p@mail.example",
            "smtp://u:p@mail.example:587?tls=required",
            "smtp://u:p@127.0.0.1:2525",
            "smtp://u:p@[::1]:2525",
            "smtp://u:p@localhost",
            "smtp://mail.example:25",
        ] {
            must_encrypt(text).unwrap();
        }
        for text in [
            "smtp://u:hunter2@mail.example",
            "smtp://u:hunter2@mail.example:587?tls=opportunistic",
        ] {
            let error = must_encrypt(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
