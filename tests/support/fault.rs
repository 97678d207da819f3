//! Requests as a server saw them, and what goes wrong with them.

#![allow(dead_code, reason = "each program uses a part of it")]

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::locked;

/// A request, as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Below `/api/`, still encoded.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    /// A request whose path below the API's base URL is `path`.
    pub(super) fn new(head: &Parts, path: &str, body: Bytes) -> Self {
        Self {
            method: head.method.clone(),
            path: path.to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers.clone(),
            body,
        }
    }

    /// The body as JSON; null where it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The rows that it carries: of a DELETE `{"key": "…"}`, the last part of its path; of a batch also the
    /// keys of its deletes.
    fn rows(&self) -> Vec<Value> {
        if self.method == Method::DELETE {
            return vec![json!({"key": self.path.rsplit('/').next()})];
        }
        if self.path == "changes" {
            let squeezed = self.headers.contains_key(header::CONTENT_ENCODING);
            let text = if squeezed {
                zstd::decode_all(&*self.body).unwrap()
            } else {
                self.body.to_vec()
            };
            let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            return lines
                .map(|line| serde_json::from_slice(line).unwrap())
                .map(|change: Value| match change["row"].is_null() {
                    true => change["key"].clone(),
                    false => change["row"].clone(),
                })
                .collect();
        }
        match self.json()["records"].as_array() {
            Some(rows) => rows.clone(),
            None => vec![self.json()],
        }
    }
}

type Condition = Arc<dyn Fn(&Value) -> bool + Send + Sync>;

/// What goes wrong, where, and how often.
#[derive(Clone)]
pub(crate) struct Fault {
    pub(super) what: What,
    /// Whether the request is done before the answer is given in its place.
    pub(super) after: bool,
    method: Option<Method>,
    path: Option<String>,
    condition: Option<Condition>,
    times: Option<usize>,
}

/// The faults of a server, in the order in which they were added.
#[derive(Default)]
pub(super) struct FaultScript(Mutex<Vec<Fault>>);

impl FaultScript {
    pub(super) fn add(&self, fault: Fault) {
        locked(&self.0).push(fault);
    }

    pub(super) fn clear(&self) {
        locked(&self.0).clear();
    }

    /// The first fault that fits the request; it counts as one of the fault's times.
    pub(super) fn strike(&self, request: &Request) -> Option<Fault> {
        let mut faults = locked(&self.0);
        let fault = faults.iter_mut().find(|fault| fault.strikes(request))?;
        fault.times = fault.times.map(|times| times - 1);
        Some(fault.clone())
    }
}

#[derive(Clone)]
pub(super) enum What {
    Answer {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    },
    Cut {
        stored: bool,
    },
    Stall,
    /// Done once it is let in, whether or not the client still waits.
    Hold(watch::Receiver<bool>),
}

/// Lets held requests in.
pub(crate) struct Latch(watch::Sender<bool>);

impl Latch {
    /// From now on they arrive.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }
}

impl Fault {
    fn new(what: What) -> Self {
        Self {
            what,
            after: false,
            method: None,
            path: None,
            condition: None,
            times: None,
        }
    }

    /// Answers this status, with a few words as JSON; stores nothing.
    pub(crate) fn status(status: u16) -> Self {
        Self::answer(
            status,
            "application/json",
            &json!({"error": format!("scripted {status}")}).to_string(),
        )
    }

    /// Answers this; stores nothing.
    pub(crate) fn answer(status: u16, content_type: &str, body: &str) -> Self {
        Self::new(What::Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.parse().unwrap())]),
            body: body.to_owned().into(),
        })
    }

    /// A captive portal: a page with status 200.
    pub(crate) fn page() -> Self {
        Self::answer(
            200,
            "text/html; charset=utf-8",
            "<!DOCTYPE html><html><body>Log in</body></html>",
        )
    }

    /// Cuts the connection without an answer; stores nothing.
    pub(crate) fn cut() -> Self {
        Self::new(What::Cut { stored: false })
    }

    /// Does what is asked, then cuts the connection without an answer.
    pub(crate) fn cut_after_store() -> Self {
        Self::new(What::Cut { stored: true })
    }

    /// Never answers.
    pub(crate) fn stall() -> Self {
        Self::new(What::Stall)
    }

    /// Holds the request on its way, also when the client has given it up, until the latch opens; only at a
    /// baseline server.
    pub(crate) fn hold() -> (Self, Latch) {
        let (open, held) = watch::channel(false);
        (Self::new(What::Hold(held)), Latch(open))
    }

    /// Does what is asked before it answers; only at a fault_proxy.
    pub(crate) fn after_store(mut self) -> Self {
        self.after = true;
        self
    }

    /// Adds a header to the answer.
    pub(crate) fn header(mut self, name: header::HeaderName, value: &str) -> Self {
        if let What::Answer { headers, .. } = &mut self.what {
            headers.insert(name, value.parse().unwrap());
        }
        self
    }

    /// Adds `Retry-After`.
    pub(crate) fn retry_after(self, value: &str) -> Self {
        self.header(header::RETRY_AFTER, value)
    }

    /// Only for this path below `/api/`, or paths below it.
    pub(crate) fn on(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Only for this method.
    pub(crate) fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Only where a row of the request is such a row: see [`Request::rows`].
    pub(crate) fn when(mut self, condition: impl Fn(&Value) -> bool + Send + Sync + 'static) -> Self {
        self.condition = Some(Arc::new(condition));
        self
    }

    /// Only so many times; without it, until the faults are cleared.
    pub(crate) fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    /// Whether it strikes this request.
    fn strikes(&self, request: &Request) -> bool {
        let at_path = self.path.as_ref().is_none_or(|path| {
            request
                .path
                .strip_prefix(path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let such_rows = || {
            let condition = self.condition.as_ref()?;
            Some(request.rows().iter().any(|row| condition(row)))
        };
        self.times != Some(0)
            && self
                .method
                .as_ref()
                .is_none_or(|method| *method == request.method)
            && at_path
            && such_rows().unwrap_or(true)
    }
}
