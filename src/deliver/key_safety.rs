//! Where the key may be sent, and the TLS that hides it on the way.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::{Host, Url};

use crate::error::{Error, Result};

/// Fails if a key must not be sent there.
pub(super) fn check(url: &Url, allow_insecure_http: bool) -> Result<()> {
    let wrong = |cause: &str, remedy: &str| Err(Error::config("use cloud.url", cause).remedy(remedy));
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return wrong(
            "it is not an http:// or https:// address",
            "set it to the API's base URL, as in https://cloud.example/api",
        );
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong(
            "it carries a user name or a password",
            "remove them from the URL; the key belongs in cloud.key (CLOUD_API_KEY)",
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong(
            "it has a query or a fragment",
            "set it to the API's base URL, as in https://cloud.example/api",
        );
    }
    if url.scheme() == "http" && !is_loopback(url) && !allow_insecure_http {
        return wrong(
            "http:// to another machine would send the key and every row in the clear",
            "use https://, or set cloud.allow_insecure_http = true if the network itself is private",
        );
    }
    Ok(())
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// rustls with ring, the system's roots and those of `ca_file`.
pub(super) fn tls(url: &Url, ca_file: Option<&Path>) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    if url.scheme() == "https" {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if let Some(path) = ca_file {
            let operation = format!("read cloud.ca_file {}", path.display());
            let wrong = |cause: String| {
                Error::config(operation.clone(), cause).remedy("name a PEM file of CA certificates")
            };
            let mut found = 0;
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?
            {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                found += 1;
            }
            if found == 0 {
                return Err(wrong("it holds no certificate".to_owned()));
            }
        }
        if roots.is_empty() {
            return Err(
                Error::config("set up the cloud's client", "this system has no CA certificates")
                    .remedy("install ca-certificates, or name a file in cloud.ca_file"),
            );
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::config("set up the cloud's client", error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn plain_http_leaves_this_machine_only_where_it_is_allowed() {
        for url in [
            "http://localhost/api",
            "http://127.0.0.9:80/",
            "http://[::1]/api",
            "https://cloud.example/",
        ] {
            check(&url.parse().unwrap(), false).unwrap();
        }
        let away = "http://cloud.example/api".parse().unwrap();
        assert_eq!(check(&away, false).unwrap_err().kind(), Kind::Config);
        check(&away, true).unwrap();
    }

    #[test]
    fn urls_that_would_leak_or_break_are_refused_without_being_shown() {
        for url in [
            "http://user:hidden@localhost/",
            "http://localhost/?hidden=1",
            "ftp://localhost/hidden",
        ] {
            let error = check(&url.parse().unwrap(), true).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(!error.to_string().contains("hidden"), "{error}");
        }
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let url = "https://cloud.example/api".parse().unwrap();
        let error = tls(&url, Some(file.path())).expect_err("refused");
        assert!(error.to_string().contains("cloud.ca_file"), "{error}");
    }
}
