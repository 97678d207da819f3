//! The connection to the cloud: one HTTP client, one base URL, one key; and what each answer's status means.
//!
//! The key goes to the configured host and nowhere else: redirects are not followed, a base URL with credentials of its
//! own is refused, and so is plain `http://` to another machine. No message carries the URL, the key or a row.
//!
//! Time limits follow the body: a request may take the configured time and, on top, what its body needs at
//! [`SLOWEST`], so that a full batch gets through a slow uplink. A dead connection is noticed sooner, by TCP's user
//! timeout.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};

use super::CloudOptions;
use super::broken::{Resolver, broken};
use super::failure::{Failure, Outcome};
use super::secure::{check, is_loopback, tls};
use super::timing;
use crate::abort;
use crate::error::{Error, Kind, Result, chain};
use crate::latency::Answered;
use crate::retry;

/// The slowest uplink that a body's time is reckoned with, in bytes a second.
const SLOWEST: u64 = 16 * 1024;

/// The longest answer that is read. Lists are streamed and have no such bound.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

/// The longest text of a refusal that is kept, in characters.
const LONGEST_WORDS: usize = 300;

const CAPTIVE: &str =
    "check that cloud.url is the API's base URL and that no portal or proxy answers in its place";

/// What came back, after the statuses that stop a call have become failures.
pub(super) enum Answer {
    /// 2xx.
    Accepted(Reply),
    /// A 4xx about this very request: neither the key, nor something that passes.
    Refused {
        status: u16,
        /// The server's words, cut and cleaned.
        words: String,
        /// The server's own code for it.
        code: Option<String>,
    },
}

/// A 2xx answer, read to its end.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Reply {
    /// The body as JSON of the contract's form.
    pub(super) fn json<'a, T: serde::Deserialize<'a>>(&'a self, operation: &str) -> Outcome<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let what = if looks_like_html(&self.body) {
                "an HTML page".to_owned()
            } else {
                format!(
                    "something else ({:?} at column {})",
                    error.classify(),
                    error.column()
                )
            };
            Failure::protocol(
                operation,
                format!(
                    "the cloud answered {} with {what} in place of the contract's JSON",
                    self.status.as_u16()
                ),
                CAPTIVE,
            )
        })
    }

    /// How long the answer took, and what of that the server says that it took itself.
    pub(super) fn answered(&self, took: Duration) -> Answered {
        let applied = timing::applied(&self.headers);
        Answered {
            took,
            applied: applied.map(|applied| applied.min(took)),
        }
    }

    /// Fails where a page came in place of an API's answer. Some servers label JSON as HTML: those pass.
    pub(super) fn not_a_page(&self, operation: &str) -> Outcome<()> {
        let labelled = self.status != StatusCode::NO_CONTENT && is_html(&self.headers);
        let json = || serde_json::from_slice::<serde::de::IgnoredAny>(&self.body).is_ok();
        if looks_like_html(&self.body) || (labelled && !json()) {
            return Err(Failure::protocol(
                operation,
                format!("the cloud answered {} with an HTML page", self.status.as_u16()),
                CAPTIVE,
            ));
        }
        Ok(())
    }
}

/// One client and where it speaks to.
pub(super) struct Link {
    client: Client,
    base: String,
    key: SecretString,
    timeout: Duration,
}

impl Link {
    pub(super) fn new(options: &CloudOptions) -> Result<Self> {
        check(&options.url, options.allow_insecure_http)?;
        let operation = "set up the cloud's client";
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", options.key.expose_secret()))
            .map_err(|_| Error::config(operation, "the key has characters that a header cannot carry"))?;
        bearer.set_sensitive(true);
        let headers = HeaderMap::from_iter([
            (AUTHORIZATION, bearer),
            (ACCEPT, HeaderValue::from_static("application/json")),
        ]);
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
        if is_loopback(&options.url) {
            builder = builder.no_proxy();
        }
        Ok(Self {
            client: builder
                .build()
                .map_err(|error| Error::config(operation, chain(&error.without_url())))?,
            base: options.url.as_str().trim_end_matches('/').to_owned(),
            key: options.key.clone(),
            timeout: options.timeout,
        })
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A request to `path`, whose segments are already encoded, below the base URL.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/{path}", self.base))
    }

    /// Sends a request with a body of `bytes` bytes, and reads the whole answer.
    pub(super) async fn call(
        &self,
        operation: &str,
        request: RequestBuilder,
        bytes: usize,
    ) -> Outcome<Answer> {
        self.within(operation, bytes, self.exchange(operation, request))
            .await
    }

    /// The same, however long it takes.
    pub(super) async fn exchange(&self, operation: &str, request: RequestBuilder) -> Outcome<Answer> {
        let response = request.send().await.map_err(|error| broken(operation, error))?;
        abort::point("amid the answer");
        self.answer(operation, response).await
    }

    /// An answer, within the time that a body of `bytes` bytes has.
    pub(super) async fn within(
        &self,
        operation: &str,
        bytes: usize,
        answer: impl Future<Output = Outcome<Answer>>,
    ) -> Outcome<Answer> {
        let limit = self.timeout + time_for(bytes as u64);
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(self.too_late(operation, limit)))
    }

    /// What a response means, read to its end.
    pub(super) async fn answer(&self, operation: &str, response: Response) -> Outcome<Answer> {
        if response.status().is_success() {
            let (status, headers) = (response.status(), response.headers().clone());
            let body = read(operation, response, LONGEST_ANSWER).await?;
            return Ok(Answer::Accepted(Reply {
                status,
                headers,
                body,
            }));
        }
        let (status, words, code) = self.refused(operation, response).await?;
        Ok(Answer::Refused { status, words, code })
    }

    /// The status, the words and the server's own code of a response that is not a 2xx, where it is about this very request.
    pub(super) async fn refused(
        &self,
        operation: &str,
        response: Response,
    ) -> Outcome<(u16, String, Option<String>)> {
        let status = response.status();
        let code = status.as_u16();
        match code {
            300..=399 => Err(Failure::protocol(
                operation,
                match location(&response) {
                    Some(host) => format!("the cloud answered {status} to {host}"),
                    None => format!("the cloud answered {status}"),
                },
                "set cloud.url to the final address: redirects are not followed, so that the key stays with its host",
            )
            .with_status(code)),
            401 | 403 => Err(Failure::from(
                Error::new(Kind::CloudAuth, operation, format!("the cloud refused the key ({status})"))
                    .remedy("set cloud.key (CLOUD_API_KEY) to a key that is valid there; capture goes on meanwhile"),
            )
            .with_status(code)),
            408 | 425 | 429 | 500..=599 => {
                let wait = response
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok())
                    .and_then(|value| retry::retry_after(value, Timestamp::now()));
                let remedy = match code {
                    408 | 425 | 429 => "it asks for patience: it is tried again, no sooner than it wants",
                    _ => "it is tried again; if it lasts, look at the cloud's own logs and at the proxies before it",
                };
                Err(Failure::unreachable(operation, format!("the cloud answered {status}"), remedy)
                    .with_status(code)
                    .with_retry_after(wait))
            }
            // It comes from between here and the cloud, and says nothing about the request.
            407 => Err(Failure::unreachable(
                operation,
                format!("a proxy on the way answered {status}"),
                "check the proxy in HTTP_PROXY and HTTPS_PROXY, and the user and password that it wants",
            )
            .with_status(code)),
            400..=499 => {
                let page = is_html(response.headers());
                // What cannot be read of a refusal changes nothing about it.
                let body = read(operation, response, 64 * 1024).await.unwrap_or_default();
                let words = match words(&body) {
                    Some(words) if !page && !looks_like_html(&body) => self.clean(&words),
                    _ => status.canonical_reason().unwrap_or("refused").to_owned(),
                };
                Ok((code, words, own_code(&body)))
            }
            _ => Err(Failure::protocol(
                operation,
                format!("the cloud answered {status}"),
                CAPTIVE,
            )),
        }
    }

    pub(super) fn too_late(&self, operation: &str, limit: Duration) -> Failure {
        Failure::unreachable(
            operation,
            format!("no answer within {} s", limit.as_secs_f32().ceil()),
            "check the network between here and the cloud, or raise cloud.timeout; changes wait in the outbox meanwhile",
        )
        .under_way()
    }

    /// A server's words, safe to keep and to show: no control characters, not the key, not long.
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
    Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST)
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
async fn read(operation: &str, mut response: Response, limit: usize) -> Outcome<Bytes> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(operation, error))? {
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
    let target = response.headers().get(LOCATION)?.to_str().ok()?;
    let target = response.url().join(target).ok()?;
    let host = target.host_str()?;
    Some(match target.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

pub(super) fn is_html(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            let kind = value.split(';').next().unwrap_or_default().trim();
            kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
        })
}

fn looks_like_html(body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    ["<!doctype html", "<html"].iter().any(|mark| {
        start
            .get(..mark.len())
            .is_some_and(|text| text.eq_ignore_ascii_case(mark.as_bytes()))
    })
}

/// The member `code` of a refusal's body.
fn own_code(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(body.get("code")?.as_str()?.chars().take(40).collect())
}

/// What a refusal's body says: the message of a JSON object, else its text.
fn words(body: &[u8]) -> Option<String> {
    use serde_json::Value;
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(fields)) => {
            ["error", "message", "detail", "title"]
                .iter()
                .find_map(|name| match fields.get(*name)? {
                    Value::String(text) => Some(text.clone()),
                    Value::Object(inner) => Some(inner.get("message")?.as_str()?.to_owned()),
                    _ => None,
                })
        }
        Ok(Value::String(text)) => Some(text),
        _ => None,
    };
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    (!text.trim().is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> CloudOptions {
        CloudOptions {
            url: url.parse().unwrap(),
            key: "sesame-1234".to_owned().into(),
            timeout: Duration::from_secs(1),
            allow_insecure_http: false,
            ca_file: None,
            forced: None,
            in_flight: 4,
            compress: false,
        }
    }

    #[test]
    fn words_are_cut_and_cleaned() {
        let link = Link::new(&options("http://localhost/")).unwrap();
        let long = "é".repeat(1000);
        assert_eq!(link.clean(&long).chars().count(), LONGEST_WORDS);
        assert_eq!(link.clean("a\u{1b}[31m\nb sesame-1234"), "a [31m b [the key]");
        assert_eq!(words(br#"{"message":"no","errors":{}}"#).as_deref(), Some("no"));
        assert_eq!(words(br#"{"error":{"message":"no"}}"#).as_deref(), Some("no"));
        assert_eq!(words(b"plain").as_deref(), Some("plain"));
        assert_eq!(words(b"  ").as_deref(), None);
    }

    #[test]
    fn segments_are_encoded_whole() {
        let mut segment = String::new();
        encode_into(&mut segment, "a/b c,é%?#~");
        assert_eq!(segment, "a%2Fb%20c%2C%C3%A9%25%3F%23~");
    }
}
