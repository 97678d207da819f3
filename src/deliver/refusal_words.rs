//! The words in which a server says why it did not accept a request, without the values of the row.

use serde_json::Value;

use crate::wire::ErrorCode;

/// The shortest value that is removed from a server's words, in characters: a shorter one reveals nothing,
/// and its removal would make the words unreadable.
const SHORTEST_VALUE: usize = 4;

/// How many messages are joined at most.
const MAX_MESSAGES: usize = 4;

/// The contract's code in the member `code` of a refusal's body.
pub(super) fn error_code(body: &[u8]) -> Option<ErrorCode> {
    let body: Value = serde_json::from_slice(body).ok()?;
    ErrorCode::from_text(body.get("code")?.as_str()?)
}

/// The words of a refusal's body: the messages of a JSON object, else its text.
pub(super) fn refusal_words(body: &[u8]) -> Option<String> {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(value) => messages(&value),
        Err(_) => None,
    };
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    (!text.trim().is_empty()).then_some(text)
}

/// The messages of a JSON answer in the forms that servers use: a text; `error`, `message`, `detail` or
/// `title`, each a text or an object with a message; and what `errors` lists.
pub(super) fn messages(value: &Value) -> Option<String> {
    let fields = match value {
        Value::String(text) => return Some(text.clone()),
        Value::Object(fields) => fields,
        _ => return None,
    };
    let first = ["error", "message", "detail", "title", "error_description"]
        .iter()
        .find_map(|name| match fields.get(*name)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Object(inner) => Some(inner.get("message")?.as_str()?.to_owned()),
            _ => None,
        });
    let mut all: Vec<String> = first.into_iter().collect();
    if let Some(errors) = fields.get("errors") {
        push_listed(&mut all, None, errors);
    }
    (!all.is_empty()).then(|| all.join("; "))
}

/// The texts in a list or a map of errors, each after the name of its field.
fn push_listed(all: &mut Vec<String>, name: Option<&str>, value: &Value) {
    if all.len() >= MAX_MESSAGES {
        return;
    }
    match value {
        Value::String(text) => all.push(match name {
            Some(name) => format!("{name}: {text}"),
            None => text.clone(),
        }),
        Value::Array(values) => values.iter().for_each(|value| push_listed(all, name, value)),
        Value::Object(fields) => match messages(value) {
            Some(text) => push_listed(all, name, &Value::String(text)),
            None => fields
                .iter()
                .for_each(|(name, value)| push_listed(all, Some(name), value)),
        },
        _ => {}
    }
}

/// The text of a page, without its tags, scripts and styles, and with single spaces.
pub(super) fn without_tags(page: &str) -> String {
    let mut text = String::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        let hidden = ["script", "style", "head"].into_iter().find(|name| {
            let tag = after.get(..name.len());
            tag.is_some_and(|tag| tag.eq_ignore_ascii_case(name))
        });
        let end = match hidden {
            Some(name) => after.to_ascii_lowercase().find(&format!("</{name}")),
            None => Some(0),
        };
        let Some(tag) = end.and_then(|end| after[end..].find('>').map(|close| end + close + 1)) else {
            rest = "";
            break;
        };
        rest = &after[tag..];
    }
    text.push_str(rest);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The words without the values of the row, a JSON object. Each value is replaced by three dots, the longest
/// first.
pub(super) fn without_row(words: &str, row: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(row) else {
        return words.to_owned();
    };
    let mut values = Vec::new();
    fields.values().for_each(|value| push_texts(&mut values, value));
    values.retain(|text| text.chars().count() >= SHORTEST_VALUE);
    values.sort_by_key(|text| std::cmp::Reverse(text.len()));
    let mut words = words.to_owned();
    for text in values {
        if words.contains(&text) {
            words = words.replace(&text, "…");
        }
    }
    words
}

fn push_texts(values: &mut Vec<String>, value: &Value) {
    match value {
        Value::String(text) => {
            // A server may trim it, or write a date without its zone.
            let trimmed = text.trim();
            if let Some((day, time)) = trimmed.split_once(['T', ' '])
                && day.len() == 10
                && time.len() >= 8
                && time.is_char_boundary(8)
            {
                values.push(format!("{day} {}", &time[..8]));
            }
            values.push(trimmed.to_owned());
        }
        Value::Number(number) => values.push(number.to_string()),
        Value::Array(all) => all.iter().for_each(|value| push_texts(values, value)),
        Value::Object(fields) => fields.values().for_each(|value| push_texts(values, value)),
        Value::Bool(_) | Value::Null => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_the_usual_forms() {
        for (body, expected) in [
            (r#"{"message":"no","errors":{}}"#, Some("no")),
            (r#"{"error":{"message":"no"}}"#, Some("no")),
            (
                r#"{"message":"invalid","errors":{"name":["too long"],"age":["too high"]}}"#,
                Some("invalid; age: too high; name: too long"),
            ),
            (
                r#"{"errors":[{"detail":"one"},{"message":"two"}]}"#,
                Some("one; two"),
            ),
            ("plain", Some("plain")),
            ("  ", None),
        ] {
            assert_eq!(refusal_words(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn the_text_of_a_page_is_found() {
        let page = "<!DOCTYPE html><html><head><title>x</title></head><style>b{}</style><body>\n<h1>403  \
                    Forbidden</h1>Blocked.";
        assert_eq!(without_tags(page), "403 Forbidden Blocked.");
        assert_eq!(without_tags("<pre>Error: é\n at x"), "Error: é at x");
        assert_eq!(without_tags("plain < 3"), "plain");
        assert_eq!(without_tags("<script>var x"), "");
    }

    #[test]
    fn values_of_the_row_are_taken_out() {
        let row =
            r#"{"id":120017,"name":" Anna Berg ","at":"2026-11-29T08:00:00+00:00","n":1,"tags":["secret"]}"#;
        let words = "Duplicate entry 'Anna Berg' (SQL: insert values (120017, Anna Berg, 2026-11-29 \
                     08:00:00, 1, secret))";
        assert_eq!(
            without_row(words, row),
            "Duplicate entry '…' (SQL: insert values (…, …, …, 1, …))"
        );
        assert_eq!(without_row("no", "no row"), "no");
    }
}
