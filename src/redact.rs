//! Removes credentials from texts before they leave the site: from a URL everything but scheme, host, port
//! and path; a login before a host; and every value of an excluded column.

use std::borrow::Cow;

/// Returns the text without credentials and without any of the secrets.
pub(crate) fn redact_text<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = end_of_word(rest);
        out.push_str(&redact_word(&rest[..end]));
        let after = rest[end..].chars().next().map_or(0, char::len_utf8);
        out.push_str(&rest[end..end + after]);
        rest = &rest[end + after..];
    }
    let mut secrets: Vec<&str> = secrets
        .iter()
        .copied()
        .filter(|secret| !secret.is_empty())
        .collect();
    // A secret may be part of another one: the longest goes first.
    secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    for secret in secrets {
        if out.contains(secret) {
            out = out.replace(secret, "");
        }
    }
    if out == text {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(out)
    }
}

/// Redacts the strings of JSON text, the names of members included. Returns `None` if the text is no JSON.
pub(crate) fn redact_json(text: &str, secrets: &[&str]) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    while let Some(open) = memchr::memchr(b'"', &bytes[from..]) {
        let open = from + open;
        out.push_str(&redact_between_strings(&text[from..open], secrets));
        let mut close = open + 1;
        loop {
            close += memchr::memchr2(b'"', b'\\', bytes.get(close..)?)?;
            if bytes[close] == b'"' {
                break;
            }
            close += 2;
        }
        let token = &text[open..=close];
        match serde_json::from_str::<String>(token) {
            Ok(string) => {
                let redacted = redact_text(&string, secrets);
                if redacted == string {
                    out.push_str(token);
                } else {
                    out.push_str(&serde_json::to_string(&*redacted).ok()?);
                }
            }
            // Half a surrogate pair is no text that could be redacted.
            Err(_) => out.push_str("\"\""),
        }
        from = close + 1;
    }
    out.push_str(&redact_between_strings(&text[from..], secrets));
    Some(out)
}

/// Redacts the part of JSON text between two strings: a number that is a secret becomes null.
fn redact_between_strings<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    let tokens = || text.split_inclusive([',', ':', '[', ']', '{', '}', ' ']);
    let number = |token: &str| token.trim_end_matches([',', ':', '[', ']', '{', '}', ' ']).len();
    let is_secret = |token: &str| number(token) > 0 && secrets.contains(&&token[..number(token)]);
    if !tokens().any(is_secret) {
        return Cow::Borrowed(text);
    }
    let redacted = |token: &str| match is_secret(token) {
        true => format!("null{}", &token[number(token)..]),
        false => token.to_owned(),
    };
    Cow::Owned(tokens().map(redacted).collect())
}

fn ends_word(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '"' | '\'' | '<' | '>' | '`' | '|')
}

/// Where the first word ends. A URL whose authority is not valid may have a space or a quote in its password:
/// it continues after the next at sign.
fn end_of_word(text: &str) -> usize {
    let end_from = |from: usize| text[from..].find(ends_word).map_or(text.len(), |end| from + end);
    let end = end_from(0);
    match text[..end].split_once("://") {
        Some((_, rest)) if !rest.contains('@') && !is_authority(before_path(rest)) => {
            text[end..].find('@').map_or(end, |at| end_from(end + at))
        }
        _ => end,
    }
}

/// Returns the word without credentials.
fn redact_word(word: &str) -> Cow<'_, str> {
    if word.contains('%') {
        let plain = percent_encoding::percent_decode_str(word).decode_utf8_lossy();
        return match redact_url(&plain) {
            Cow::Owned(redacted) if redacted != plain => Cow::Owned(redacted),
            _ => Cow::Borrowed(word),
        };
    }
    redact_url(word)
}

/// Returns scheme, host, port and path of a URL, with or without a scheme. Returns any other text unchanged.
fn redact_url(word: &str) -> Cow<'_, str> {
    let (scheme, rest) = match word.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None if has_login(word) || has_parameters(word) => (None, word),
        None => return Cow::Borrowed(word),
    };
    let rest = host_and_path(rest);
    Cow::Owned(match scheme {
        // A parameter may come before the scheme, too.
        Some(scheme) => format!(
            "{}://{rest}",
            scheme.rsplit(['=', '&', '?']).next().unwrap_or_default()
        ),
        None => rest,
    })
}

/// Whether the word has a login before a host: name:password@host.
fn has_login(word: &str) -> bool {
    word.split_once(':').is_some_and(|(_, after)| after.contains('@'))
}

/// Whether the word has parameters after a path or in it, as cameras have them:
/// /user=admin_password=x_channel=1.sdp
fn has_parameters(word: &str) -> bool {
    let first = word.find(['/', '?', '&']);
    first.is_some_and(|first| word[first..].contains('=') || word[..first].contains('='))
}

/// Returns what follows a scheme, without login and parameters. Empty if it is not clear which part is the
/// host.
fn host_and_path(rest: &str) -> String {
    let query = rest.find(['?', '#', ';']).unwrap_or(rest.len());
    let (before, after) = rest.split_at(query);
    // A password may hold any character: all before the last at sign is the login.
    let host_path = before
        .rsplit_once('@')
        .map_or(before, |(_, after_login)| after_login);
    let authority = before_path(host_path);
    // An at sign after the path belongs to a parameter. Without a path it may end a login that has a question
    // mark.
    let is_clear = !after.contains('@') || authority.len() < host_path.len();
    if !is_clear || !is_authority(authority) {
        return match after.rsplit_once('@') {
            Some((_, after_login)) if !after.contains('=') && is_authority(before_path(after_login)) => {
                host_and_path(after_login)
            }
            _ => String::new(),
        };
    }
    let parts: Vec<&str> = host_path
        .split('/')
        .map(|part| if part.contains(['=', '&']) { "" } else { part })
        .collect();
    parts.join("/")
}

fn before_path(rest: &str) -> &str {
    rest.split(['/', '?', '#', ';']).next().unwrap_or_default()
}

/// Whether the text is a host, or a host and a port. It is empty in `file:///`.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rfind(']') {
        Some(end) if text.starts_with('[') => text.split_at(end + 1),
        _ => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_host = |letter: char| letter.is_alphanumeric() || "-._[]:%".contains(letter);
    let port = port.strip_prefix(':').unwrap_or(port);
    host.chars().all(is_host) && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_scheme_host_port_and_path() {
        for (before, after) in [
            (
                "rtsp://admin:pass@10.0.0.5:554/live/1",
                "rtsp://10.0.0.5:554/live/1",
            ),
            ("rtsp://admin:pa/ss@host/live", "rtsp://host/live"),
            ("rtsp://admin:p@ss/w@host:554/live", "rtsp://host:554/live"),
            ("rtsp://admin:p?a#s@host/live", "rtsp://host/live"),
            ("rtsp://admin:pa ss@host/live", "rtsp://host/live"),
            ("rtsp://admin:pa\"ss@host/live", "rtsp://host/live"),
            ("rtsp://admin:secret", "rtsp://"),
            ("rtsp://admin@host/live", "rtsp://host/live"),
            ("rtsp://[fe80::1]:554/live", "rtsp://[fe80::1]:554/live"),
            ("rtsp://a:b@[fe80::1]/live", "rtsp://[fe80::1]/live"),
            ("file:///media/a b.mp4", "file:///media/a b.mp4"),
            ("rtsp://host/user=admin_password=X_channel=1.sdp", "rtsp://host/"),
            ("/user=admin_password=X_channel=1.sdp", "/"),
            ("host:554/user=admin_password=X_channel=1.sdp", "host:554/"),
            ("http://host/a?u=admin&p=X", "http://host/a"),
            ("http://host/a?mail=b@c&p=X", "http://host/a"),
            ("http://host?p=X@Y", "http://"),
            ("http://host/a;u=admin;p=X", "http://host/a"),
            ("?u=admin&p=X", ""),
            ("10.0.0.5/cam?u=admin&p=X", "10.0.0.5/cam"),
            ("u=admin&p=X", ""),
            ("admin:X@host", "host"),
            ("admin:pa/ss@host", "host"),
            ("admin:pa/ss@host:554/live", "host:554/live"),
            ("//admin:X@host/live", "host/live"),
            ("http://proxy/rtsp://admin:X@cam/live", "http://cam/live"),
            ("rtsp%3A%2F%2Fadmin%3AX%40host%2Flive", "rtsp://host/live"),
            ("http://host/a%20b", "http://host/a%20b"),
            ("url=rtsp://admin:X@host/live", "rtsp://host/live"),
            ("bob@school.edu", "bob@school.edu"),
            ("and/or, 50% more", "and/or, 50% more"),
            ("see admin:X@host now", "see host now"),
            ("10:30 at the gate", "10:30 at the gate"),
            ("plain", "plain"),
            ("x <rtsp://a:b@c/d> y", "x <rtsp://c/d> y"),
        ] {
            assert_eq!(redact_text(before, &[]), after, "{before}");
        }
        assert_eq!(
            redact_text("the pass is hunter2", &["hunter2", ""]),
            "the pass is "
        );
    }

    #[test]
    fn strings_within_json_are_redacted() {
        assert_eq!(
            redact_json(r#"{"a":["rtsp://u:p@h/x",1],"b":"y\n"}"#, &[]).unwrap(),
            r#"{"a":["rtsp://h/x",1],"b":"y\n"}"#
        );
        assert_eq!(
            redact_json(r#"{"pin":4711,"code":"x4711","n":[47110, 4711]}"#, &["4711"]).unwrap(),
            r#"{"pin":null,"code":"x","n":[47110, null]}"#
        );
    }
}
