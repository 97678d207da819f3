//! Calls that find out what a server can do, and change nothing there.

use reqwest::Method;
use reqwest::header::{ALLOW, CONTENT_TYPE};
use serde_json::Value;

use super::Cloud;
use super::failure::CloudResult;
use super::http::read_body;
use super::reply::says_failure;
use crate::wire::JSON;

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 1024 * 1024;

/// What a server answered.
#[derive(Debug)]
pub struct ProbeAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body, if it is JSON.
    pub json: Option<Value>,
    /// The methods that its `Allow` header names.
    pub allows: Vec<String>,
}

impl ProbeAnswer {
    /// Whether it is a 2xx with JSON that says no failure.
    pub fn is_well(&self) -> bool {
        let json = self.json.as_ref();
        (200..300).contains(&self.status) && json.is_some_and(|json| !says_failure(json, None))
    }
}

impl Cloud {
    /// Asks for a path below `cloud.url` itself, whatever the prefix is.
    ///
    /// # Errors
    /// There is no answer, or it is too long.
    pub async fn probe(&self, method: Method, path: &str, body: Option<&Value>) -> CloudResult<ProbeAnswer> {
        let operation = format!("ask the cloud for /{path}");
        let http = &self.inner.http;
        let mut request = http.request_below_url(method, path);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, JSON).body(body.to_string());
        }
        let asked = async {
            let response = http.send(&operation, request).await?;
            let status = response.status().as_u16();
            let allows = response
                .headers()
                .get_all(ALLOW)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .map(|method| method.trim().to_ascii_uppercase())
                .collect();
            let body = read_body(&operation, response, LONGEST_ANSWER)
                .await
                .unwrap_or_default();
            Ok(ProbeAnswer {
                status,
                json: serde_json::from_slice(&body).ok(),
                allows,
            })
        };
        tokio::time::timeout(http.timeout(), asked)
            .await
            .unwrap_or_else(|_| Err(http.timed_out(&operation, http.timeout())))
    }
}
