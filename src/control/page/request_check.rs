//! Whether a request may be the page's own: which name it asks for, and which page it comes from.
//!
//! A hostile web page can let its own name point to this machine (DNS rebinding). Then the browser takes the
//! hostile page and this one for the same; only the `Host` header tells them apart. And a hostile page can
//! send forms here; then `Origin` and `Sec-Fetch-Site` tell whose form it is.

use std::net::IpAddr;

use axum::http::{HeaderMap, header};

/// The names and addresses by which browsers reach the page.
#[derive(Debug, Clone)]
pub(super) struct HostNames {
    address: IpAddr,
    names: Vec<String>,
}

impl HostNames {
    /// For a server that listens on this address, with further names.
    pub(super) fn new(address: IpAddr, names: &[String]) -> Self {
        Self {
            address: address.to_canonical(),
            names: names.to_vec(),
        }
    }

    /// Whether the request asks for one of the names. Any port will do: it may be forwarded.
    pub(super) fn allow(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return false;
        };
        host.to_str().is_ok_and(|host| self.is_own(without_port(host)))
    }

    fn is_own(&self, name: &str) -> bool {
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(name).parse::<IpAddr>() {
            // No name points elsewhere here: a page with an address in its URL has that address.
            let address = address.to_canonical();
            return match self.address {
                own if own.is_unspecified() => true,
                own if own.is_loopback() => address.is_loopback(),
                own => address == own,
            };
        }
        let reaches_loopback = self.address.is_loopback() || self.address.is_unspecified();
        (reaches_loopback && name.eq_ignore_ascii_case("localhost"))
            || self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

/// Whether a form comes from a page of the same name and port. A request that does not say where it comes
/// from is refused: every browser of today says it.
pub(super) fn comes_from_own_page(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let site = text(header::HeaderName::from_static("sec-fetch-site"));
    let origin = text(header::ORIGIN);
    if site.is_none() && origin.is_none() {
        return false;
    }
    let host = text(header::HOST).unwrap_or_default();
    let is_own_origin = |origin: &str| {
        origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
            .is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    };
    site.is_none_or(|site| site == "same-origin") && origin.is_none_or(is_own_origin)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn only_own_names_and_addresses_are_allowed() {
        let names = ["sync.school.example".to_owned()];
        let allows = |address: &str, host: &str| {
            HostNames::new(address.parse().unwrap(), &names).allow(&headers(&[("host", host)]))
        };
        for host in [
            "127.0.0.1:8787",
            "localhost",
            "LOCALHOST:9000",
            "[::1]:8787",
            "sync.school.example",
        ] {
            assert!(allows("127.0.0.1", host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8787",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "192.0.2.7",
            "sync.school.example.evil.example",
            "",
            ":8787",
        ] {
            assert!(!allows("127.0.0.1", host), "{host}");
        }
        assert!(allows("192.0.2.7", "192.0.2.7:8787"));
        assert!(!allows("192.0.2.7", "192.0.2.8:8787"));
        assert!(!allows("192.0.2.7", "localhost:8787"));
        assert!(allows("0.0.0.0", "192.0.2.8:8787"));
        assert!(allows("::", "localhost:8787"));
        assert!(!allows("0.0.0.0", "evil.example"));
        let own = HostNames::new("127.0.0.1".parse().unwrap(), &[]);
        assert!(!own.allow(&HeaderMap::new()), "no name at all");
        let mut two = headers(&[("host", "localhost")]);
        two.append(header::HOST, "evil.example".parse().unwrap());
        assert!(!own.allow(&two), "two names");
    }

    #[test]
    fn only_own_forms_are_taken() {
        let takes = |pairs: &[(&'static str, &str)]| {
            let mut all = vec![("host", "localhost:8787")];
            all.extend_from_slice(pairs);
            comes_from_own_page(&headers(&all))
        };
        assert!(takes(&[
            ("origin", "http://localhost:8787"),
            ("sec-fetch-site", "same-origin")
        ]));
        assert!(takes(&[("origin", "https://localhost:8787")]));
        assert!(takes(&[("sec-fetch-site", "same-origin")]));
        for foreign in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "http://evil.example")],
            &[("origin", "http://localhost:9999")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[
                ("origin", "http://localhost:8787"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[
                ("origin", "http://evil.example"),
                ("sec-fetch-site", "same-origin"),
            ],
        ] {
            assert!(!takes(foreign), "{foreign:?}");
        }
    }
}
