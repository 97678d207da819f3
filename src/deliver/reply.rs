//! What a 2xx answer says: that the request was accepted, that it failed all the same, or nothing, as the
//! answer does not come from the cloud.
//!
//! A request counts as accepted if the body is empty, or is JSON that says no failure. Portals, firewalls and
//! proxies answer with pages and texts; and many servers answer 200 with a failure in the body. Whoever
//! believed either would lose the row.

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::Value;
use std::time::Duration;

use super::failure::{CloudResult, Failure};
use super::http::CAPTIVE;
use super::refusal_words::messages;
use crate::latency::AnswerTimes;
use crate::wire::server_timing::read_applied;

/// How many characters of a foreign answer are shown.
const SHOWN_CHARS: usize = 80;

/// A 2xx answer, read to its end.
pub(super) struct CloudReply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What the cloud says about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It did what was asked.
    Accepted,
    /// It did not, and says so in these words.
    Failed(String),
}

/// What the cloud says about a request with several rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BulkVerdict {
    /// It took all of them.
    All,
    /// It did not take some of them.
    NotAll {
        /// The errors that it lists, one value each.
        errors: Vec<Value>,
        /// How many rows it left out; `None` if it does not say.
        left_out: Option<usize>,
    },
}

impl CloudReply {
    /// The body as JSON of the contract's form.
    pub(super) fn json<'a, T: serde::Deserialize<'a>>(&'a self, operation: &str) -> CloudResult<T> {
        serde_json::from_slice(self.text()).map_err(|error| match self.value(operation) {
            Ok(_) => Failure::protocol(
                operation,
                format!(
                    "the cloud answered {} with something else ({:?} at column {}) in place of the \
                     contract's JSON",
                    self.status.as_u16(),
                    error.classify(),
                    error.column()
                ),
                CAPTIVE,
            ),
            Err(foreign) => foreign,
        })
    }

    /// How long the answer took, and how much of that the server itself took, as far as it says.
    pub(super) fn times(&self, took: Duration) -> AnswerTimes {
        let applied = read_applied(&self.headers);
        AnswerTimes {
            took,
            applied: applied.map(|applied| applied.min(took)),
        }
    }

    /// What it says about a request; `row` is the row that the request had, a JSON object, if it had one.
    ///
    /// # Errors
    /// The answer does not come from the cloud.
    pub(super) fn verdict(&self, operation: &str, row: Option<&str>) -> CloudResult<Verdict> {
        let Some(value) = self.value(operation)? else {
            return Ok(Verdict::Accepted);
        };
        if !says_failure(&value, row) {
            return Ok(Verdict::Accepted);
        }
        let words = messages(&value).unwrap_or_else(|| "it says no reason".to_owned());
        Ok(Verdict::Failed(words))
    }

    /// What it says about a request with so many rows.
    ///
    /// # Errors
    /// The answer does not come from the cloud.
    pub(super) fn bulk_verdict(&self, operation: &str, rows: usize) -> CloudResult<BulkVerdict> {
        let Some(value) = self.value(operation)? else {
            return Ok(BulkVerdict::All);
        };
        let counted = |name: &str| match value.get(name)? {
            Value::Array(all) => Some(all.len()),
            number => usize::try_from(number.as_u64()?).ok(),
        };
        let (upserted, skipped) = (counted("upserted"), counted("skipped"));
        let too_few = upserted.is_some_and(|upserted| upserted < rows);
        if !says_failure(&value, None) && !too_few && skipped.unwrap_or(0) == 0 {
            return Ok(BulkVerdict::All);
        }
        let errors = match value.get("errors") {
            Some(Value::Array(errors)) => errors.clone(),
            _ => Vec::new(),
        };
        // If the server says both numbers they must agree: some servers count an updated row twice, or an
        // unchanged one not at all.
        let left_out = match (upserted, skipped) {
            (Some(upserted), Some(skipped)) => (upserted + skipped == rows).then_some(skipped),
            (_, skipped) => skipped,
        };
        Ok(BulkVerdict::NotAll { errors, left_out })
    }

    /// The body without a byte order mark.
    fn text(&self) -> &[u8] {
        self.body
            .strip_prefix("\u{feff}".as_bytes())
            .unwrap_or(&self.body)
    }

    /// The body as JSON; `None` if it is empty.
    fn value(&self, operation: &str) -> CloudResult<Option<Value>> {
        let text = self.text();
        if text.trim_ascii().is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(text).map(Some).map_err(|_| {
            Failure::protocol(
                operation,
                format!(
                    "the cloud answered {} with {}",
                    self.status.as_u16(),
                    describe_foreign(text, &self.headers)
                ),
                CAPTIVE,
            )
            .with_status(self.status.as_u16())
        })
    }
}

/// What an answer is that is not JSON, in words.
fn describe_foreign(text: &[u8], headers: &HeaderMap) -> String {
    if text.starts_with(&[0x1f, 0x8b]) || text.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return "a compressed body, which was not asked for".to_owned();
    }
    if is_html(headers) || looks_like_html(text) {
        // PHP writes a notice as HTML, and the answer comes after it.
        return match has_json_at_end(text) {
            true => "a page or a notice before the JSON: turn the server's display of errors off".to_owned(),
            false => "an HTML page".to_owned(),
        };
    }
    let start: String = String::from_utf8_lossy(text)
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(SHOWN_CHARS)
        .collect();
    match has_json_at_end(text) {
        true => format!("something before the JSON, which begins {:?}", start.trim()),
        false => format!("text that is not JSON, which begins {:?}", start.trim()),
    }
}

/// Whether the end of the text is a JSON object or array.
fn has_json_at_end(text: &[u8]) -> bool {
    let mut starts = text.iter().enumerate().filter(|(_, byte)| b"{[".contains(byte));
    // The first ones may belong to the words before it.
    starts
        .by_ref()
        .take(8)
        .any(|(at, _)| serde_json::from_slice::<serde::de::IgnoredAny>(&text[at..]).is_ok())
}

/// Whether a JSON answer says that the request failed, in any of the usual forms. A member that is the row's
/// own column with the value that was sent says nothing: many servers answer with the row.
pub(super) fn says_failure(value: &Value, row: Option<&str>) -> bool {
    let fields = match value {
        Value::Bool(done) => return !done,
        Value::Object(fields) => fields,
        _ => return false,
    };
    let signs = fields
        .iter()
        .filter(|(name, value)| match name.to_ascii_lowercase().as_str() {
            "success" | "ok" | "succeeded" => is_no(value),
            "status" | "result" => (is_no(value) && !value.is_number()) || is_bad(value),
            "error" | "errors" | "exception" => is_something(value),
            "failed" => is_something(value) && !value.is_string(),
            _ => false,
        });
    let signs: Vec<(&String, &Value)> = signs.collect();
    if signs.is_empty() {
        return false;
    }
    let sent: Value = row
        .and_then(|row| serde_json::from_str(row).ok())
        .unwrap_or_default();
    signs
        .into_iter()
        .any(|(name, value)| sent.get(name) != Some(value))
}

fn is_no(value: &Value) -> bool {
    match value {
        Value::Bool(yes) => !yes,
        Value::String(text) => text.eq_ignore_ascii_case("false") || text == "0",
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

fn is_bad(value: &Value) -> bool {
    const BAD: [&str; 6] = ["error", "fail", "failed", "failure", "fault", "ko"];
    match value {
        Value::String(text) => BAD.iter().any(|word| text.eq_ignore_ascii_case(word)),
        Value::Number(number) => number.as_u64().is_some_and(|code| (400..600).contains(&code)),
        _ => false,
    }
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !matches!(text.trim(), "" | "0" | "false" | "none" | "null"),
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
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

/// Whether the text begins like a page or another document of tags.
pub(super) fn looks_like_html(text: &[u8]) -> bool {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    text.trim_ascii_start().starts_with(b"<")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(body: &str) -> CloudReply {
        CloudReply {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test]
    fn a_row_is_accepted_by_nothing_or_by_json_without_a_failure() {
        for body in [
            "",
            " \n",
            "{}",
            "[]",
            "null",
            "true",
            "\"created\"",
            "\u{feff}{\"success\":true}",
            r#"{"success":true,"error":null,"errors":[],"failed":0}"#,
            r#"{"status":"ok"}"#,
            r#"{"status":201,"error":false}"#,
            r#"{"id":7,"name":"error"}"#,
        ] {
            assert_eq!(
                reply(body).verdict("push", None).unwrap(),
                Verdict::Accepted,
                "{body}"
            );
        }
    }

    #[test]
    fn a_failure_in_a_200_is_one_in_any_of_the_usual_forms() {
        for (body, words) in [
            (r#"{"success":false,"message":"no room"}"#, "no room"),
            (r#"{"Success":"false","error":"no"}"#, "no"),
            (r#"{"ok":false}"#, "it says no reason"),
            (r#"{"status":"error","message":"no"}"#, "no"),
            (r#"{"status":422,"title":"no"}"#, "no"),
            (r#"{"error":{"message":"no"}}"#, "no"),
            (r#"{"errors":{"name":["too long"]}}"#, "name: too long"),
            (r#"{"failed":1}"#, "it says no reason"),
            ("false", "it says no reason"),
        ] {
            let verdict = reply(body).verdict("push", None).unwrap();
            assert_eq!(verdict, Verdict::Failed(words.to_owned()), "{body}");
        }
    }

    #[test]
    fn a_row_that_comes_back_says_no_failure_by_its_own_columns() {
        let row = r#"{"id":1,"status":"failed","error":"camera off"}"#;
        let verdict = |body| reply(body).verdict("push", Some(row)).unwrap();
        assert_eq!(verdict(row), Verdict::Accepted);
        let other = r#"{"id":1,"status":"failed","error":"duplicate"}"#;
        assert_eq!(verdict(other), Verdict::Failed("duplicate".to_owned()));
    }

    #[test]
    fn an_answer_that_is_not_the_clouds_is_described() {
        for (body, description) in [
            ("<HEAD><TITLE>Login", "an HTML page"),
            ("<!-- x --><html>", "an HTML page"),
            ("\u{feff}<!doctype html>", "an HTML page"),
            ("<?xml version=\"1.0\"?><portal/>", "an HTML page"),
            ("<script>location.href='x'</script>", "an HTML page"),
            ("Please log in to use this network", "Please log in"),
            (
                "<b>Notice</b>: x in /a.php {\"success\":true}",
                "turn the server's display",
            ),
            ("Warning: x [1] {\"success\":true}", "something before the JSON"),
            ("{\"success\":tr", "not JSON"),
        ] {
            let failure = reply(body).verdict("push", None).unwrap_err().to_string();
            assert!(failure.contains(description), "{body}: {failure}");
        }
    }

    #[test]
    fn a_compressed_body_that_was_not_asked_for_is_named() {
        for body in [&[0x1f, 0x8b, 8, 0][..], &[0x28, 0xb5, 0x2f, 0xfd]] {
            let reply = CloudReply {
                body: Bytes::copy_from_slice(body),
                ..reply("")
            };
            let failure = reply.verdict("push", None).unwrap_err().to_string();
            assert!(failure.contains("compressed"), "{failure}");
        }
    }

    #[test]
    fn a_bulk_answer_must_account_for_all_rows() {
        let verdict = |body: &str| reply(body).bulk_verdict("push", 3).unwrap();
        for body in [
            "",
            r#"{"success":true}"#,
            r#"{"success":true,"upserted":3,"skipped":0,"errors":[]}"#,
        ] {
            assert_eq!(verdict(body), BulkVerdict::All, "{body}");
        }
        for (body, left_out) in [
            (r#"{"success":true,"upserted":2}"#, None),
            (
                r#"{"success":true,"upserted":2,"skipped":1,"errors":[]}"#,
                Some(1),
            ),
            (r#"{"success":true,"upserted":6,"skipped":1}"#, None),
            (r#"{"success":true,"skipped":[{"id":1}]}"#, Some(1)),
            (r#"{"success":false}"#, None),
        ] {
            let errors = Vec::new();
            assert_eq!(verdict(body), BulkVerdict::NotAll { errors, left_out }, "{body}");
        }
    }
}
