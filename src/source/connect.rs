//! A session with the site's database: connected, with pinned settings, its notifications kept.
//!
//! The connection is driven by `poll_message`, since the plain future throws notifications away. TLS follows
//! libpq: `require` and `prefer` encrypt, `verify-ca` and `verify-full` also check the certificate.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::StreamExt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Notify;
use tokio_postgres::config::SslMode;
use tokio_postgres::{AsyncMessage, Client, Config, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{Error, Kind, Result};
use crate::sql_template::statement;

/// The settings of every session.
const PIN: &str = statement!("session", "pin");

/// An open session. Dropping it closes the connection.
pub struct Session {
    client: Client,
    notified: Arc<Notify>,
    closed: CancellationToken,
    _driver: DropGuard,
}

impl Session {
    /// Connects to `url` for `purpose`, which shows in the server's list of sessions.
    ///
    /// # Errors
    /// A wrong URL is a configuration error; a server that does not answer within ten seconds is unreachable.
    pub async fn open(url: &SecretString, purpose: &str) -> Result<Self> {
        let operation = format!("connect to the site's database ({purpose})");
        let (mut config, verify) = parse(url)?;
        config.application_name(format!("cloud-sync {purpose}"));
        config.connect_timeout(Duration::from_secs(10));
        config.keepalives_idle(Duration::from_secs(30));
        config.tcp_user_timeout(Duration::from_secs(60));
        let (client, mut connection) = tokio::time::timeout(
            Duration::from_secs(15),
            config.connect(MakeRustlsConnect::new(tls(verify)?)),
        )
        .await
        .map_err(|_| {
            Error::new(Kind::SourceUnreachable, &operation, "no answer within 15 seconds")
                .remedy("check that the server runs and that source.database_url is right")
        })?
        .map_err(|error| {
            Error::postgres(&operation, error)
                .remedy("check that the server runs and that source.database_url is right")
        })?;
        let notified = Arc::new(Notify::new());
        let closed = CancellationToken::new();
        let stop = CancellationToken::new();
        tokio::spawn({
            let (notified, closed, stop) = (notified.clone(), closed.clone(), stop.clone());
            async move {
                let _closed = closed.drop_guard();
                let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
                loop {
                    tokio::select! {
                        () = stop.cancelled() => break,
                        message = messages.next() => match message {
                            Some(Ok(AsyncMessage::Notification(_))) => notified.notify_one(),
                            Some(Ok(AsyncMessage::Notice(notice))) => {
                                tracing::debug!(notice = notice.message(), "source");
                            }
                            Some(Ok(_)) => {}
                            Some(Err(_)) | None => break,
                        },
                    }
                }
            }
        });
        let session = Self {
            client,
            notified,
            closed,
            _driver: stop.drop_guard(),
        };
        session
            .client
            .batch_execute(PIN)
            .await
            .map_err(|error| Error::postgres(operation, error))?;
        Ok(session)
    }

    /// The client for queries.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client for a transaction.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Waits for a notification; one that came since the last wait counts.
    pub async fn notified(&self) {
        self.notified.notified().await;
    }

    /// Whether the connection is lost.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until the connection is lost.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

/// How often we check whether a session keeps its server process.
const TRIES: usize = 8;

/// How long a session may take to get a server process from a pooler.
const POOLED: Duration = Duration::from_secs(5);

/// Refuses a pooler that gives a session's next transaction to another server process, as PgBouncer does with
/// `pool_mode = transaction`: settings, locks, prepared statements and notifications would be lost.
///
/// # Errors
/// As [`Session::open`]; a configuration error if it is such a pooler.
pub async fn must_keep_sessions(url: &SecretString) -> Result<()> {
    let operation = "use the site's database";
    let refused = || {
        Error::config(
            operation,
            "source.database_url leads through a pooler that gives each transaction another server process",
        )
        .remedy(
            "connect directly: name the server's own host and port in source.database_url (or let \
             PgBouncer pool by session, pool_mode = session)",
        )
    };
    let (first, second) = tokio::try_join!(Session::open(url, "pooler"), Session::open(url, "pooler"))?;
    let failed = |error| Error::postgres(operation, error);
    let process = async |session: &Session| {
        let asked = session.client().simple_query(statement!("session", "process"));
        match tokio::time::timeout(POOLED, asked).await {
            Ok(rows) => Ok(rows.map_err(failed)?.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })),
            // All processes of the pool are in use.
            Err(_) => Err(refused()),
        }
    };
    // More than once: another session may give a process back in between, which is then taken in place of the
    // first.
    for _ in 0..TRIES {
        let before = process(&first).await?;
        // If the pooler gives processes by transaction, this transaction takes the process that was used
        // last.
        second.client().batch_execute("begin").await.map_err(failed)?;
        let taken = process(&second).await?;
        let after = process(&first).await?;
        second.client().batch_execute("rollback").await.map_err(failed)?;
        if before != after || after == taken {
            return Err(refused());
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verify {
    Nothing,
    Chain,
    Full,
}

/// tokio-postgres knows no `verify-*`: they are taken out of the URL, and TLS is required.
fn parse(url: &SecretString) -> Result<(Config, Verify)> {
    let text = url.expose_secret();
    let mut verify = Verify::Nothing;
    let mut plain = text.to_owned();
    for (word, meaning) in [
        ("sslmode=verify-full", Verify::Full),
        ("sslmode=verify-ca", Verify::Chain),
    ] {
        if plain.contains(word) {
            plain = plain.replace(word, "sslmode=require");
            verify = meaning;
        }
    }
    let mut config: Config = plain.parse().map_err(|_| {
        // The parser's own message may quote the URL, and with it the password.
        Error::config(
            "read source.database_url",
            "it is not a PostgreSQL connection URL",
        )
        .remedy("use postgres://user:password@host:5432/database, or key=value pairs")
    })?;
    if verify != Verify::Nothing {
        config.ssl_mode(SslMode::Require);
    }
    Ok((config, verify))
}

fn tls(verify: Verify) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::config("set up TLS for the site's database", error.to_string()))?;
    if verify == Verify::Nothing {
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(EncryptOnly(provider)))
            .with_no_client_auth());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Encrypts without checking who answers, as libpq's `require` does.
#[derive(Debug)]
pub(crate) struct EncryptOnly(pub(crate) Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for EncryptOnly {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A small sqlx pool for migrations and for the short questions of status and commands.
///
/// # Errors
/// As [`Session::open`].
pub async fn pool(url: &SecretString) -> Result<sqlx::PgPool> {
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    let options: PgConnectOptions = url.expose_secret().parse().map_err(|_| {
        Error::config(
            "read source.database_url",
            "it is not a PostgreSQL connection URL",
        )
        .remedy("use postgres://user:password@host:5432/database")
    })?;
    PgPoolOptions::new()
        .max_connections(3)
        .min_connections(0)
        .acquire_timeout(Duration::from_secs(15))
        .idle_timeout(Duration::from_secs(60))
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql(PIN).execute(connection).await?;
                Ok(())
            })
        })
        // PgBouncer refuses to start a session with this setting, which is pinned later anyway.
        .connect_with(
            options
                .application_name("cloud-sync questions")
                .extra_float_digits(None),
        )
        .await
        .map_err(|error| Error::sqlx("connect to the site's database", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_modes_are_understood_and_a_wrong_url_does_not_show_itself() {
        let (config, verify) = parse(&SecretString::from("postgres://u:p@h/d?sslmode=verify-full")).unwrap();
        assert_eq!((config.get_ssl_mode(), verify), (SslMode::Require, Verify::Full));
        let error = parse(&SecretString::from("postgres://u:hunter2@h:notaport/d")).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
