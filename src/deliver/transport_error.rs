//! A request that got no answer: the cause in words, and what to do about it.
//!
//! The cause is found by the types of the errors, never by their text.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::CertificateError;
use url::Url;

use super::failure::Failure;
use super::http::host;
use crate::error::{Kind, chain};

const NETWORK: &str =
    "check this machine's network and its route to the cloud; until then changes wait in the outbox";

/// The failure of a request that got no answer.
pub(super) fn transport_failure(operation: &str, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    if error.is_builder() {
        return Failure::new(Kind::Config, operation, chain(&error));
    }
    let has_begun = !error.is_connect();
    let (cause, remedy) = cause_and_remedy(&error);
    let failure = Failure::unreachable(operation, cause, remedy);
    if has_begun { failure.interrupted() } else { failure }
}

/// A proxy that the environment names for the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EnvironmentProxy {
    variable: &'static str,
    /// Host and port; `None` if they cannot be read: then no proxy is used.
    address: Option<String>,
}

impl EnvironmentProxy {
    /// The one that requests to this URL go through; `None` if there is none, or `NO_PROXY` exempts the host.
    pub(super) fn of(url: &Url, variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let own = url.host_str()?;
        let exempt = set("no_proxy").or_else(|| set("NO_PROXY")).unwrap_or_default();
        let mut exempt = exempt.split(',').map(|name| name.trim().trim_start_matches('.'));
        if exempt.any(|name| name == "*" || own == name || own.ends_with(&format!(".{name}"))) {
            return None;
        }
        let names = match url.scheme() {
            "https" => ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            _ => ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
        };
        let (variable, value) = names.into_iter().find_map(|name| Some((name, set(name)?)))?;
        // Without a scheme, the host's name would be read as the scheme.
        let proxy = Url::parse(&value).ok().filter(Url::has_host);
        let proxy = proxy.or_else(|| Url::parse(&format!("http://{value}")).ok());
        Some(Self {
            variable,
            address: proxy.as_ref().map(host),
        })
    }

    /// The failure of a request that did not reach it.
    fn unreachable(&self, operation: &str, cause: &str) -> Failure {
        let variable = self.variable;
        let what = match &self.address {
            Some(address) => format!("no connection to the proxy {address} that {variable} names ({cause})"),
            None => format!(
                "no connection to the cloud ({cause}); {variable} names no proxy that can be read, so that none \
                 is used"
            ),
        };
        Failure::unreachable(
            operation,
            what,
            "check that proxy; or remove the variable from the service's environment, or name the cloud's \
             host in NO_PROXY",
        )
    }
}

/// The same as [`transport_failure`] for a request that goes through this proxy.
pub(super) fn transport_failure_through(
    proxy: Option<&EnvironmentProxy>,
    operation: &str,
    error: reqwest::Error,
) -> Failure {
    match proxy {
        Some(proxy) if error.is_connect() && find::<rustls::Error>(&error).is_none() => {
            proxy.unreachable(operation, &root_message(&error.without_url()))
        }
        _ => transport_failure(operation, error),
    }
}

/// The cause in words, and the remedy.
fn cause_and_remedy(error: &reqwest::Error) -> (String, &'static str) {
    if let Some(host) = find::<UnknownHost>(error) {
        return (
            host.to_string(),
            "check the host name in cloud.url, and this machine's network and DNS; until then changes wait \
             in the outbox",
        );
    }
    if let Some(error) = find::<rustls::Error>(error) {
        return tls(error);
    }
    let kind = find::<io::Error>(error).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => (
            "the cloud refused the connection: nothing listens there".to_owned(),
            "check that the cloud's server runs, and host and port in cloud.url; until then changes wait in \
             the outbox",
        ),
        Some(
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkDown,
        ) => (
            format!("no route to the cloud ({})", root_message(error)),
            NETWORK,
        ),
        _ if error.is_timeout() && error.is_connect() => (
            "no connection to the cloud within the time limit".to_owned(),
            "check host and port in cloud.url, and the network, firewall or proxy in between; until then \
             changes wait in the outbox",
        ),
        Some(io::ErrorKind::TimedOut) => (
            "the connection to the cloud no longer answers".to_owned(),
            NETWORK,
        ),
        _ if error.is_connect() => (
            format!("no connection to the cloud ({})", root_message(error)),
            "check cloud.url, the network, and the proxy in HTTPS_PROXY if one is set; until then changes \
             wait in the outbox",
        ),
        _ => (
            format!(
                "the connection to the cloud was interrupted ({})",
                root_message(error)
            ),
            "the request is sent again; if it keeps failing, look at the proxies on the way and at the \
             cloud's own logs",
        ),
    }
}

fn tls(error: &rustls::Error) -> (String, &'static str) {
    use CertificateError as Wrong;
    let remedy = match error {
        rustls::Error::InvalidCertificate(wrong) => match wrong {
            Wrong::UnknownIssuer => {
                "name the PEM file of the CA that issued it in cloud.ca_file; if it should be a public one, \
                 something on the way answers instead of the cloud"
            }
            Wrong::Expired | Wrong::ExpiredContext { .. } => {
                "renew the certificate on the cloud's server; check this machine's clock too"
            }
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => "check this machine's clock",
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
                "set cloud.url to a host name that the certificate is for, or give the cloud's server a \
                 certificate for this one"
            }
            Wrong::Revoked => "give the cloud's server a new certificate",
            _ => "check the certificate of the cloud's server, and cloud.ca_file if one is set",
        },
        _ => "check that the port in cloud.url speaks TLS, and that no proxy on the way breaks it",
    };
    match error {
        rustls::Error::InvalidCertificate(Wrong::UnknownIssuer) => (
            "the cloud's certificate is not trusted (its issuer is not known here)".to_owned(),
            remedy,
        ),
        rustls::Error::InvalidCertificate(_) => (
            format!("the cloud's certificate is not trusted ({error})"),
            remedy,
        ),
        _ => (format!("no TLS with the cloud ({error})"), remedy),
    }
}

/// The message of the error that all others follow from.
fn root_message(error: &reqwest::Error) -> String {
    let mut root: &(dyn StdError + 'static) = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string()
}

/// The first error of this type among an error and its causes, what an I/O error carries included.
fn find<'e, T: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let carried = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|carried| carried as &(dyn StdError + 'static));
        if let Some(found) = carried.and_then(|carried| find::<T>(carried)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The host name has no address.
#[derive(Debug)]
struct UnknownHost {
    name: String,
    error: io::Error,
}

impl fmt::Display for UnknownHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the host name {} cannot be resolved ({})",
            self.name, self.error
        )
    }
}

impl StdError for UnknownHost {}

/// The system's resolver. Its failure has a type of its own.
#[derive(Debug)]
pub(super) struct Resolver;

impl Resolver {
    pub(super) fn shared() -> Arc<Self> {
        Arc::new(Self)
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(found) => {
                    let found: Addrs = Box::new(found.collect::<Vec<_>>().into_iter());
                    Ok(found)
                }
                Err(error) => {
                    let name = name.as_str().to_owned();
                    Err(UnknownHost { name, error }.into())
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_found_however_deep_it_is() {
        let wrong = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let inner = io::Error::new(io::ErrorKind::InvalidData, wrong);
        let outer = io::Error::other(inner);
        let found = find::<rustls::Error>(&outer);
        assert!(matches!(found, Some(rustls::Error::InvalidCertificate(_))));
        assert!(find::<UnknownHost>(&outer).is_none());
    }

    #[test]
    fn each_fault_of_a_certificate_has_a_remedy_of_its_own() {
        let mut remedies: Vec<&str> = [
            CertificateError::UnknownIssuer,
            CertificateError::Expired,
            CertificateError::NotValidYet,
            CertificateError::NotValidForName,
            CertificateError::BadEncoding,
        ]
        .into_iter()
        .map(|wrong| tls(&rustls::Error::InvalidCertificate(wrong)).1)
        .collect();
        remedies.push(tls(&rustls::Error::DecryptError).1);
        remedies.sort_unstable();
        remedies.dedup();
        assert_eq!(remedies.len(), 6);
    }

    #[test]
    fn the_environments_proxy_is_named_without_its_credentials() {
        let of = |url: &str, set: &[(&str, &str)]| {
            EnvironmentProxy::of(&url.parse().unwrap(), |name| {
                let found = set.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let set = [
            ("HTTPS_PROXY", "http://user:secret@10.0.0.1:3128"),
            ("http_proxy", "squid:3128"),
        ];
        let message = of("https://cloud.example/api", &set)
            .unwrap()
            .unreachable("push", "refused")
            .to_string();
        assert!(
            message.contains("the proxy 10.0.0.1:3128 that HTTPS_PROXY names") && !message.contains("secret"),
            "{message}"
        );
        assert_eq!(
            of("http://cloud.example/api", &set).unwrap().address.as_deref(),
            Some("squid:3128")
        );
        let unreadable = of("http://cloud.example/api", &[("http_proxy", "::::")]).unwrap();
        let message = unreadable.unreachable("push", "refused").to_string();
        assert!(
            message.contains("http_proxy names no proxy that can be read"),
            "{message}"
        );
        assert_eq!(of("https://cloud.example/api", &[]), None);
        for exempt in ["*", "cloud.example", "other, .example"] {
            let set = [("all_proxy", "http://10.0.0.1"), ("no_proxy", exempt)];
            assert_eq!(of("https://cloud.example/api", &set), None, "{exempt}");
        }
    }
}
