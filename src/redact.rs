//! Takes credentials out of texts before they leave the site: of each URL everything but scheme, host, port and path; logins
//! before a host; and every value of an excluded column.

use std::borrow::Cow;

/// The text without credentials and without any of the secrets.
pub(crate) fn text<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(ends_word).unwrap_or(rest.len());
        out.push_str(&word(&rest[..end]));
        let after = rest[end..].chars().next().map_or(0, char::len_utf8);
        out.push_str(&rest[end..end + after]);
        rest = &rest[end + after..];
    }
    let mut secrets: Vec<&str> = secrets
        .iter()
        .copied()
        .filter(|secret| !secret.is_empty())
        .collect();
    // A secret may be part of another one.
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

/// JSON text whose strings are redacted, the names of members included; none where it is no JSON.
pub(crate) fn json(text_: &str, secrets: &[&str]) -> Option<String> {
    let bytes = text_.as_bytes();
    let mut out = String::with_capacity(text_.len());
    let mut from = 0;
    while let Some(open) = memchr::memchr(b'"', &bytes[from..]) {
        let open = from + open;
        out.push_str(&text_[from..open]);
        let mut close = open + 1;
        loop {
            close += memchr::memchr2(b'"', b'\\', bytes.get(close..)?)?;
            if bytes[close] == b'"' {
                break;
            }
            close += 2;
        }
        let token = &text_[open..=close];
        match serde_json::from_str::<String>(token) {
            Ok(string) => {
                let redacted = text(&string, secrets);
                if redacted == string {
                    out.push_str(token);
                } else {
                    out.push_str(&serde_json::to_string(&*redacted).ok()?);
                }
            }
            // Half a surrogate pair has no text that could be looked at.
            Err(_) => out.push_str("\"\""),
        }
        from = close + 1;
    }
    out.push_str(&text_[from..]);
    Some(out)
}

fn ends_word(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '"' | '\'' | '<' | '>' | '`' | '|')
}

/// A word without credentials.
fn word(word: &str) -> Cow<'_, str> {
    let (scheme, rest) = match word.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        // A login before a host: name:password@host.
        None if word.split_once(':').is_some_and(|(_, after)| after.contains('@')) => (None, word),
        None => return Cow::Borrowed(word),
    };
    // A password may hold any letter: whatever comes before the last at sign is the login.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, after)| after);
    let rest = rest.split(['?', '#', ';']).next().unwrap_or_default();
    // Parts of the path that are parameters, as cameras have them: /user=admin_password=x_channel=1.sdp
    let parts: Vec<&str> = rest
        .split('/')
        .map(|part| if part.contains('=') { "" } else { part })
        .collect();
    let rest = parts.join("/");
    Cow::Owned(match scheme {
        Some(scheme) => format!("{scheme}://{rest}"),
        None => rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_url_scheme_host_port_and_path_are_left() {
        for (before, after) in [
            (
                "rtsp://admin:pass@10.0.0.5:554/live/1",
                "rtsp://10.0.0.5:554/live/1",
            ),
            ("rtsp://admin:pa/ss@host/live", "rtsp://host/live"),
            ("rtsp://host/user=admin_password=X_channel=1.sdp", "rtsp://host/"),
            ("http://host/a?u=admin&p=X", "http://host/a"),
            ("see admin:X@host now", "see host now"),
            ("10:30 at the gate", "10:30 at the gate"),
            ("plain", "plain"),
            ("x <rtsp://a:b@c/d> y", "x <rtsp://c/d> y"),
        ] {
            assert_eq!(text(before, &[]), after);
        }
        assert_eq!(text("the pass is hunter2", &["hunter2", ""]), "the pass is ");
    }

    #[test]
    fn strings_within_json_are_redacted() {
        assert_eq!(
            json(r#"{"a":["rtsp://u:p@h/x",1],"b":"y\n"}"#, &[]).unwrap(),
            r#"{"a":["rtsp://h/x",1],"b":"y\n"}"#
        );
    }
}
