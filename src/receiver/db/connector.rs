//! Opens tokio-postgres connections to the receiver's own database, as its URL asks.
//!
//! sqlx reads the URL, the `PG*` environment variables and the password file; what it understood becomes the
//! settings of tokio-postgres, so that both clients accept the same URLs and mean the same by them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use percent_encoding::percent_decode_str;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, Result, chain};
use crate::receiver::db::db_error::DbError;
use crate::source::connect::EncryptOnly;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const USE_TLS: &str = "use TLS with the receiver's database";

/// A connection and the task that drives it. Dropping them closes the connection at once, whatever is in
/// progress.
pub(crate) type Connection = (Client, AbortOnDropHandle<()>);

/// How connections are opened.
pub(crate) struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
}

impl Connector {
    /// Connections as `options` say.
    ///
    /// # Errors
    /// A certificate or key that the URL names and that cannot be used.
    pub(crate) fn new(options: &PgConnectOptions) -> Result<Self> {
        let secrets = Secrets::read(options);
        let mut config = Config::new();
        match options.get_socket() {
            Some(folder) => config.host_path(folder),
            None => config.host(options.get_host()),
        };
        config
            .port(options.get_port())
            .user(options.get_username())
            .connect_timeout(CONNECT_TIMEOUT)
            .ssl_mode(match options.get_ssl_mode() {
                PgSslMode::Disable | PgSslMode::Allow => SslMode::Disable,
                PgSslMode::Prefer => SslMode::Prefer,
                PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => SslMode::Require,
            });
        if let Some(password) = &secrets.password {
            config.password(password);
        }
        if let Some(database) = options.get_database() {
            config.dbname(database);
        }
        if let Some(name) = options.get_application_name() {
            config.application_name(name);
        }
        if let Some(options) = options.get_options() {
            config.options(options);
        }
        Ok(Self {
            config,
            tls: MakeRustlsConnect::new(secrets.tls(options.get_ssl_mode())?),
        })
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> std::result::Result<Connection, DbError> {
        let (client, mut connection) = self.config.connect(self.tls.clone()).await.map_err(|error| {
            if error.as_db_error().is_some() {
                DbError::from(error)
            } else {
                DbError::Transient(Box::new(error))
            }
        })?;
        let driver = tokio::spawn(async move {
            let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
            // Notices are dropped, as they may carry values. What ends the connection is reported to its
            // requests.
            while let Some(Ok(_)) = messages.next().await {}
        });
        Ok((client, AbortOnDropHandle::new(driver)))
    }
}

/// What sqlx's options show only within their URL.
#[derive(Default)]
struct Secrets {
    password: Option<String>,
    root_certificate: Option<String>,
    client_certificate: Option<String>,
    client_key: Option<String>,
}

impl Secrets {
    fn read(options: &PgConnectOptions) -> Self {
        // sqlx does not quote the host and the user in the URL; neither is read from it.
        let url = options
            .clone()
            .host("localhost")
            .username("receiver")
            .to_url_lossy();
        let mut secrets = Self {
            password: url
                .password()
                .map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned()),
            ..Self::default()
        };
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslrootcert" => secrets.root_certificate = Some(value.into_owned()),
                "sslcert" => secrets.client_certificate = Some(value.into_owned()),
                "sslkey" => secrets.client_key = Some(value.into_owned()),
                _ => {}
            }
        }
        secrets
    }

    /// `require` and less only encrypt; `verify-ca` also checks who signed the server's certificate, and
    /// `verify-full` that it is of the host.
    fn tls(&self, mode: PgSslMode) -> Result<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match mode {
            PgSslMode::VerifyFull => builder.with_root_certificates(self.roots()?),
            PgSslMode::VerifyCa => {
                let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()?), provider)
                    .build()
                    .map_err(unusable)?;
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(AnyHost(chain)))
            }
            _ => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(EncryptOnly(provider))),
        };
        let (Some(certificate), Some(key)) = (&self.client_certificate, &self.client_key) else {
            if self.client_certificate.is_some() || self.client_key.is_some() {
                return Err(Error::config(
                    USE_TLS,
                    "sslcert and sslkey must be given together",
                ));
            }
            return Ok(builder.with_no_client_auth());
        };
        let certificates = CertificateDer::pem_slice_iter(&pem(certificate)?)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(unusable)?;
        let key = PrivateKeyDer::from_pem_slice(&pem(key)?).map_err(unusable)?;
        builder.with_client_auth_cert(certificates, key).map_err(unusable)
    }

    /// The machine's own certificate authorities, and the one of the URL.
    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(root) = &self.root_certificate {
            for certificate in CertificateDer::pem_slice_iter(&pem(root)?) {
                roots.add(certificate.map_err(unusable)?).map_err(unusable)?;
            }
        }
        Ok(roots)
    }
}

fn unusable(error: impl std::error::Error + 'static) -> Error {
    Error::config(USE_TLS, chain(&error))
}

/// A certificate or key: the text itself, or the file that it names.
fn pem(given: &str) -> Result<Vec<u8>> {
    if given.trim_start().starts_with("-----BEGIN") {
        return Ok(given.as_bytes().to_vec());
    }
    let path = given.strip_prefix("file: ").unwrap_or(given);
    std::fs::read(path).map_err(|error| Error::local(format!("read {path}"), error))
}

/// Checks who signed the server's certificate, not which host it is of, as libpq's `verify-ca` does.
#[derive(Debug)]
struct AnyHost(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let verified = self
            .0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use tokio_postgres::config::Host;

    use super::*;

    fn connector(url: &str) -> Connector {
        Connector::new(&PgConnectOptions::from_str(url).unwrap()).unwrap()
    }

    #[test]
    fn what_sqlx_accepts_means_the_same_here() {
        let options = "options=-c%20geqo%3Doff&options[jit]=off";
        let url = format!("postgres://us%40er:p%2Fw%20d@db.example:6543/da%20ta?sslmode=require&{options}");
        let config = connector(&url).config;
        assert_eq!(config.get_hosts(), [Host::Tcp("db.example".to_owned())]);
        assert_eq!(config.get_ports(), [6543]);
        assert_eq!(config.get_user(), Some("us@er"));
        assert_eq!(config.get_password(), Some(&b"p/w d"[..]));
        assert_eq!(config.get_dbname(), Some("da ta"));
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        assert_eq!(config.get_options(), Some("-c geqo=off -c jit=off"));
        for (mode, expected) in [
            ("disable", SslMode::Disable),
            ("allow", SslMode::Disable),
            ("prefer", SslMode::Prefer),
            ("verify-ca", SslMode::Require),
            ("verify-full", SslMode::Require),
        ] {
            let config = connector(&format!("postgres://u@h/d?sslmode={mode}")).config;
            assert_eq!(config.get_ssl_mode(), expected, "{mode}");
        }
    }

    #[test]
    fn a_socket_is_named_by_its_folder() {
        for url in [
            "postgres:///d?host=/var/run/socket&user=u&password=secret",
            "postgres://u:secret@%2Fvar%2Frun%2Fsocket/d",
        ] {
            let config = connector(url).config;
            assert_eq!(
                config.get_hosts(),
                [Host::Unix("/var/run/socket".into())],
                "{url}"
            );
            assert_eq!(config.get_password(), Some(&b"secret"[..]), "{url}");
        }
    }

    #[test]
    fn a_certificate_of_the_url_is_read() {
        let key = rcgen::generate_simple_self_signed(["db.example".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root.crt");
        std::fs::write(&root, key.cert.pem()).unwrap();
        let url = |path: &std::path::Path| {
            format!(
                "postgres://u@h/d?sslmode=verify-ca&sslrootcert={}",
                path.display()
            )
        };
        connector(&url(&root));
        let absent = PgConnectOptions::from_str(&url(&folder.path().join("absent"))).unwrap();
        let error = Connector::new(&absent).err().unwrap();
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
