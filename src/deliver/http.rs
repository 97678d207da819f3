//! The connection to the cloud: one HTTP client, one base URL, one key; and what the status of each answer
//! means.
//!
//! - The key goes to the configured host and nowhere else: redirects are not followed, a base URL with
//!   credentials of its own is refused, and so is plain `http://` to another machine. No message carries the
//!   URL, the key or a row.
//! - Time limits follow the body: a request may take the configured time and, in addition, what its body
//!   needs at [`SLOWEST_UPLINK`], so that a full batch gets through a slow uplink. A dead connection is
//!   noticed sooner, by TCP's user timeout.
//! - Failure: a status that says that the call must stop (the key is refused, the cloud is busy or broken)
//!   becomes a [`Failure`]. Any other 4xx is an [`HttpAnswer`], since it is about this request only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::CloudOptions;
use super::failure::{CloudResult, Failure};
use super::key_safety::{check, is_loopback, tls};
use super::refusal_words::{error_code, messages, refusal_words, without_tags};
use super::reply::{CloudReply, is_html, looks_like_html};
use super::transport_error::{EnvironmentProxy, Resolver, transport_failure, transport_failure_through};
use crate::abort;
use crate::error::{Error, Kind, Result, chain};
use crate::retry;
use crate::wire::{ErrorCode, JSON};

/// The slowest uplink that time limits allow for, in bytes a second.
const SLOWEST_UPLINK: u64 = 16 * 1024;

/// The longest answer that is read, in bytes. Lists are streamed and have no such bound.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

/// The longest body of a refusal that is read, in bytes.
const LONGEST_REFUSAL: usize = 64 * 1024;

/// The longest text of a refusal that is kept, in characters.
const LONGEST_WORDS: usize = 300;

/// The remedy if an answer does not come from the cloud.
pub(super) const CAPTIVE: &str =
    "check that cloud.url is the API's base URL and that no portal or proxy answers in its place";

/// An answer, after the statuses that stop a call have become failures.
pub(super) enum HttpAnswer {
    /// 2xx.
    Accepted(CloudReply),
    /// A 4xx about this request: it is neither about the key nor transient.
    Refused {
        status: u16,
        /// The server's words, shortened and cleaned.
        words: String,
        /// The contract's code for it.
        code: Option<ErrorCode>,
    },
}

/// One client and the server that it talks to.
pub(super) struct HttpClient {
    client: Client,
    url: String,
    base: String,
    status_path: String,
    /// Whether the server wants a slash at the end of each path: learnt from its redirects.
    wants_slash: AtomicBool,
    key: SecretString,
    timeout: Duration,
    /// The proxy on the way, if the environment names one.
    proxy: Option<EnvironmentProxy>,
}

impl HttpClient {
    pub(super) fn new(options: &CloudOptions) -> Result<Self> {
        check(&options.url, options.allow_insecure_http)?;
        let operation = "set up the cloud's client";
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", options.key.expose_secret()))
            .map_err(|_| Error::config(operation, "the key has characters that a header cannot carry"))?;
        bearer.set_sensitive(true);
        let headers =
            HeaderMap::from_iter([(AUTHORIZATION, bearer), (ACCEPT, HeaderValue::from_static(JSON))]);
        let mut builder = Client::builder()
            .user_agent(concat!("cloud-sync/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(options.timeout)
            .tcp_nodelay(true)
            .pool_max_idle_per_host(options.in_flight.max(1) + 2)
            .dns_resolver(Resolver::shared())
            .tls_backend_preconfigured(tls(&options.url, options.ca_file.as_deref())?);
        #[cfg(target_os = "linux")]
        {
            builder = builder.tcp_user_timeout(options.timeout);
        }
        let mut proxy = None;
        if is_loopback(&options.url) {
            builder = builder.no_proxy();
        } else {
            proxy = EnvironmentProxy::of(&options.url, |name| std::env::var(name).ok());
        }
        Ok(Self {
            client: builder
                .build()
                .map_err(|error| Error::config(operation, chain(&error.without_url())))?,
            url: options.url.as_str().trim_end_matches('/').to_owned(),
            base: base(options),
            status_path: options.status_path.trim_matches('/').to_owned(),
            wants_slash: AtomicBool::new(false),
            key: options.key.clone(),
            timeout: options.timeout,
            proxy,
        })
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The path of the status call.
    pub(super) fn status_path(&self) -> &str {
        &self.status_path
    }

    /// A request to `path`, whose segments are already encoded, below the base URL.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.address(path))
    }

    /// A request to an address that the server gave, which must be on its own origin: the key goes nowhere
    /// else.
    pub(super) fn request_to(&self, operation: &str, address: &Url) -> CloudResult<RequestBuilder> {
        let Some(own) = self.on_own_origin(operation, address)? else {
            return Err(Failure::protocol(
                operation,
                format!("the next page is on another server, {}", host(address)),
                "pages are followed on the cloud's own server only: correct the address that it gives",
            ));
        };
        Ok(self.client.get(own))
    }

    /// The address on the cloud's own origin; `None` if it is on another one. If only the scheme differs, or
    /// the port is missing, as behind a proxy that ends TLS, those of the base URL are used.
    fn on_own_origin(&self, operation: &str, address: &Url) -> CloudResult<Option<Url>> {
        let mut own = self.base_url(operation)?;
        let same = own.host_str() == address.host_str()
            && (own.port_or_known_default() == address.port_or_known_default() || address.port().is_none());
        if !same {
            return Ok(None);
        }
        own.set_path(address.path());
        own.set_query(address.query());
        Ok(Some(own))
    }

    /// The same, only if it is also below the base URL's path.
    pub(super) fn below_base(&self, operation: &str, address: &Url) -> CloudResult<Option<Url>> {
        let base = self.base_url(operation)?;
        let own = self.on_own_origin(operation, address)?;
        Ok(own.filter(|own| {
            let below = own.path().strip_prefix(base.path().trim_end_matches('/'));
            below.is_some_and(|below| below.starts_with('/') && below.len() > 1)
        }))
    }

    fn base_url(&self, operation: &str) -> CloudResult<Url> {
        let base = self.base.parse();
        base.map_err(|_| Error::config(operation, "cloud.url is no URL").into())
    }

    /// A request to an address that [`HttpClient::below_base`] has returned.
    pub(super) fn request_at(&self, method: Method, address: Url) -> RequestBuilder {
        self.client.request(method, address)
    }

    /// A request to `path` below the configured URL itself, whatever the prefix is.
    pub(super) fn request_below_url(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/{path}", self.url))
    }

    fn address(&self, path: &str) -> String {
        let base = &self.base;
        if !self.wants_slash.load(Ordering::Relaxed) {
            return format!("{base}/{path}");
        }
        match path.split_once('?') {
            Some((path, query)) => format!("{base}/{}/?{query}", path.trim_end_matches('/')),
            None => format!("{base}/{}/", path.trim_end_matches('/')),
        }
    }

    /// Whether a redirect leads to the same address with a slash at its end. From now on requests end with
    /// one.
    fn learn_slash(&self, response: &Response) -> bool {
        let Some(target) = target(response) else {
            return false;
        };
        let from = response.url();
        let same = target.host_str() == from.host_str()
            && target.path().strip_suffix('/') == Some(from.path())
            && !from.path().ends_with('/');
        same && !self.wants_slash.swap(true, Ordering::Relaxed)
    }

    /// Sends a request with a body of `bytes` bytes, and reads the whole answer.
    pub(super) async fn call(
        &self,
        operation: &str,
        request: RequestBuilder,
        bytes: usize,
    ) -> CloudResult<HttpAnswer> {
        self.within(operation, bytes, self.exchange(operation, request))
            .await
    }

    /// Sends a request, and waits for the start of the answer.
    pub(super) async fn send(&self, operation: &str, request: RequestBuilder) -> CloudResult<Response> {
        let sent = request.send().await;
        sent.map_err(|error| transport_failure_through(self.proxy.as_ref(), operation, error))
    }

    /// Sends a request, and reads the whole answer, however long it takes.
    pub(super) async fn exchange(&self, operation: &str, request: RequestBuilder) -> CloudResult<HttpAnswer> {
        let response = self.send(operation, request).await?;
        abort::point("amid the answer");
        self.answer(operation, response).await
    }

    /// Waits for an answer, for as long as a request with a body of `bytes` bytes may take.
    pub(super) async fn within(
        &self,
        operation: &str,
        bytes: usize,
        answer: impl Future<Output = CloudResult<HttpAnswer>>,
    ) -> CloudResult<HttpAnswer> {
        let limit = self.timeout + time_for(bytes as u64);
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(self.timed_out(operation, limit)))
    }

    /// What a response means, read to its end.
    pub(super) async fn answer(&self, operation: &str, response: Response) -> CloudResult<HttpAnswer> {
        if response.status().is_success() {
            let (status, headers) = (response.status(), response.headers().clone());
            let body = read_body(operation, response, LONGEST_ANSWER).await?;
            return Ok(HttpAnswer::Accepted(CloudReply {
                status,
                headers,
                body,
            }));
        }
        let (status, words, code) = self.refused(operation, response).await?;
        Ok(HttpAnswer::Refused { status, words, code })
    }

    /// The status, the words and the contract's code of a response that is not a 2xx and is about this
    /// request.
    ///
    /// # Errors
    /// The response is about something else: the key, the server's state, its address.
    pub(super) async fn refused(
        &self,
        operation: &str,
        response: Response,
    ) -> CloudResult<(u16, String, Option<ErrorCode>)> {
        let status = response.status();
        let code = status.as_u16();
        match code {
            301 | 302 | 307 | 308 if self.learn_slash(&response) => Err(Failure::unreachable(
                operation,
                format!("the cloud answered {status}: it wants a slash at the end of its addresses"),
                "the request is sent again in that form",
            )
            .with_status(code)),
            300..=399 => Err(Failure::protocol(
                operation,
                match location(&response) {
                    Some(host) => format!("the cloud answered {status} to {host}"),
                    None => format!("the cloud answered {status}"),
                },
                "set cloud.url to the final address: redirects are not followed, so that the key goes to no \
                 other host",
            )
            .with_status(code)),
            401 | 403 => {
                let cause = format!("the cloud refused the key ({status})");
                let error = Error::new(Kind::CloudAuth, operation, cause).remedy(
                    "set cloud.key (CLOUD_API_KEY) to a key that is valid there; until then changes wait in \
                     the outbox",
                );
                let failure = Failure::from(error).with_status(code);
                Err(self.with_words_of(operation, response, failure).await)
            }
            408 | 425 | 429 | 500..=599 => {
                let wait = response
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok())
                    .and_then(|value| retry::retry_after(value, Timestamp::now()));
                let remedy = match code {
                    408 | 425 | 429 => "the request is sent again, no sooner than the cloud asks for",
                    _ => {
                        "the request is sent again; if it keeps failing, look at the cloud's own logs and at \
                         the proxies before it"
                    }
                };
                let failure = Failure::unreachable(operation, format!("the cloud answered {status}"), remedy)
                    .with_status(code)
                    .with_retry_after(wait);
                Err(self.with_words_of(operation, response, failure).await)
            }
            // It comes from a proxy, and says nothing about the request.
            407 => Err(Failure::unreachable(
                operation,
                format!("a proxy on the way answered {status}"),
                "check the proxy in HTTP_PROXY and HTTPS_PROXY, and the user and password that it wants",
            )
            .with_status(code)),
            400..=499 => {
                let page = is_html(response.headers());
                // A refusal is one, also if its body cannot be read.
                let body = read_body(operation, response, LONGEST_REFUSAL)
                    .await
                    .unwrap_or_default();
                let words = match refusal_words(&body) {
                    Some(words) if !page && !looks_like_html(&body) => self.clean(&words),
                    _ => status.canonical_reason().unwrap_or("refused").to_owned(),
                };
                Ok((code, words, error_code(&body)))
            }
            _ => Err(Failure::protocol(
                operation,
                format!("the cloud answered {status}"),
                CAPTIVE,
            )),
        }
    }

    /// The failure with the words that the answer has, if it has any.
    async fn with_words_of(&self, operation: &str, response: Response, failure: Failure) -> Failure {
        let body = read_body(operation, response, LONGEST_REFUSAL)
            .await
            .unwrap_or_default();
        match serde_json::from_slice(&body) {
            Ok(value) => match messages(&value) {
                Some(words) => failure.with_words(self.clean(&words), true),
                None => failure,
            },
            Err(_) => match self.clean(&without_tags(&String::from_utf8_lossy(&body))) {
                words if words.is_empty() => failure,
                words => failure.with_words(words, false),
            },
        }
    }

    /// The failure of a request that got no answer in this time.
    pub(super) fn timed_out(&self, operation: &str, limit: Duration) -> Failure {
        Failure::unreachable(
            operation,
            format!("no answer within {} s", limit.as_secs_f32().ceil()),
            "check the network between here and the cloud, or raise cloud.timeout; until then changes wait \
             in the outbox",
        )
        .interrupted()
    }

    /// A server's words, safe to keep and to show: without control characters, without the key, and short.
    pub(super) fn clean(&self, words: &str) -> String {
        let key = self.key.expose_secret();
        let words = if !key.is_empty() && words.contains(key) {
            words.replace(key, "[the key]")
        } else {
            words.to_owned()
        };
        let plain: String = words
            .chars()
            .map(|letter| if letter.is_control() { ' ' } else { letter })
            .take(LONGEST_WORDS)
            .collect();
        plain.trim().to_owned()
    }
}

/// How long `bytes` may take on the slowest uplink.
pub(super) fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST_UPLINK)
}

/// `text` as one segment of a path: everything but unreserved characters is percent-encoded.
///
/// Source: RFC 3986, section 2.3.
pub(super) fn encode_into(segment: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push('%');
            for nibble in [byte >> 4, byte & 15] {
                segment.push(
                    char::from_digit(u32::from(nibble), 16)
                        .unwrap_or('0')
                        .to_ascii_uppercase(),
                );
            }
        }
    }
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_body(operation: &str, mut response: Response, limit: usize) -> CloudResult<Bytes> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| transport_failure(operation, error))?
    {
        if body.len() + chunk.len() > limit {
            return Err(Failure::protocol(
                operation,
                format!("the cloud's answer is longer than {limit} bytes"),
                CAPTIVE,
            ));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn location(response: &Response) -> Option<String> {
    target(response).map(|target| host(&target))
}

/// Where a redirect leads.
fn target(response: &Response) -> Option<Url> {
    let target = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(target).ok()
}

/// The host of an address, and its port if that is not the usual one.
pub(super) fn host(address: &Url) -> String {
    let host = address.host_str().unwrap_or_default();
    match address.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The URL that comes before all paths, without a slash at its end.
fn base(options: &CloudOptions) -> String {
    let mut base = options.url.as_str().trim_end_matches('/').to_owned();
    let prefix = options.prefix.trim_matches('/');
    if !prefix.is_empty() {
        base.push('/');
        base.push_str(prefix);
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> CloudOptions {
        CloudOptions::new(url.parse().unwrap(), "sesame-1234".to_owned().into())
    }

    #[test]
    fn words_are_cut_and_cleaned() {
        let http = HttpClient::new(&options("http://localhost/")).unwrap();
        let long = "é".repeat(1000);
        assert_eq!(http.clean(&long).chars().count(), LONGEST_WORDS);
        assert_eq!(http.clean("a\u{1b}[31m\nb sesame-1234"), "a [31m b [the key]");
    }

    #[test]
    fn segments_are_encoded_whole() {
        let mut segment = String::new();
        encode_into(&mut segment, "a/b c,é%?#~");
        assert_eq!(segment, "a%2Fb%20c%2C%C3%A9%25%3F%23~");
    }
}
