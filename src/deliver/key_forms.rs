//! A key as a segment of a path, and as a line of JSON.

use super::http::encode_into;
use crate::wire::json::{non_null_text, pick};

/// The key as the last segment of `DELETE /{path}/{key}`: the values in the key's order, each
/// percent-encoded, joined by commas. `None` if the key has no such form: a column is missing, null or empty,
/// or the segment would be `.` or `..`, which every URL parser removes.
pub(super) fn segment(key: &str, columns: &[String]) -> Option<String> {
    let mut segment = String::new();
    for (index, value) in pick(key, columns).ok()?.into_iter().enumerate() {
        let text = non_null_text(value?)?;
        if text.is_empty() {
            return None;
        }
        if index > 0 {
            segment.push(',');
        }
        encode_into(&mut segment, &text);
    }
    (!matches!(segment.as_str(), "" | "." | "..")).then_some(segment)
}

/// The key of a row of the cloud as a JSON object in one line, with the site's names: `columns` in `row`,
/// `names` in the key. `None` if a column is missing, or its value takes several lines.
pub(super) fn key_line(row: &str, columns: &[String], names: &[String]) -> Option<String> {
    let mut key = String::from("{");
    for (column, value) in names.iter().zip(pick(row, columns).ok()?) {
        if key.len() > 1 {
            key.push(',');
        }
        key.push_str(&serde_json::to_string(column).ok()?);
        key.push(':');
        key.push_str(value?);
    }
    key.push('}');
    (!key.contains('\n')).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn keys_become_one_segment() {
        let id_column = columns(&["id"]);
        assert_eq!(segment("{\"id\" : 7}", &id_column).as_deref(), Some("7"));
        assert_eq!(
            segment("{\"id\":\"a/ü\"}", &id_column).as_deref(),
            Some("a%2F%C3%BC")
        );
        let two = columns(&["term", "no"]);
        assert_eq!(
            segment("{\"no\":1,\"term\":\"a,b\"}", &two).as_deref(),
            Some("a%2Cb,1")
        );
        let row = "{\"no\" : 1, \"name\":\"x\",\n\"term\":\"a\\n\\t\"}";
        assert_eq!(
            key_line(row, &two, &two).as_deref(),
            Some("{\"term\":\"a\\n\\t\",\"no\":1}")
        );
        assert_eq!(key_line("{\"no\":1}", &two, &two), None);
        let renamed = key_line("{\"id\":7}", &id_column, &columns(&["room_id"]));
        assert_eq!(renamed.as_deref(), Some("{\"room_id\":7}"));
        for none in [
            "{\"id\":null}",
            "{}",
            "{\"id\":\"\"}",
            "{\"id\":\"..\"}",
            "{\"id\":\".\"}",
        ] {
            assert_eq!(segment(none, &id_column), None, "{none}");
        }
    }
}
