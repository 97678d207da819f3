//! Which rows of a bulk request the server left out, if its errors name them.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::Value;

use super::refusal_words::messages;
use crate::batch::ChangeIndex;
use crate::wire::json::{non_null_text, pick};

/// How deep in an error the row's key is looked for.
const MAX_DEPTH: usize = 2;

/// The server's words about each refused row, by the row's place in `rows`. `None` if the errors do not
/// account for all that was left out, each by the key of one of the rows.
pub(super) fn refused(
    rows: &[(ChangeIndex, Bytes)],
    key: &[String],
    errors: &[Value],
    left_out: Option<usize>,
) -> Option<HashMap<usize, String>> {
    if errors.is_empty() || left_out.is_some_and(|left_out| left_out != errors.len()) {
        return None;
    }
    let row_indexes: HashMap<Vec<String>, usize> = rows
        .iter()
        .enumerate()
        .filter_map(|(at, (_, row))| Some((key_of_row(std::str::from_utf8(row).ok()?, key)?, at)))
        .collect();
    let mut refused = HashMap::new();
    for error in errors {
        let at = *row_indexes.get(&key_of_error(error, key, MAX_DEPTH)?)?;
        let words = messages(error).unwrap_or_else(|| "it says no reason".to_owned());
        if refused.insert(at, words).is_some() {
            return None;
        }
    }
    Some(refused)
}

fn key_of_row(row: &str, key: &[String]) -> Option<Vec<String>> {
    pick(row, key)
        .ok()?
        .into_iter()
        .map(|value| Some(non_null_text(value?)?.into_owned()))
        .collect()
}

/// The key's values in an error, or in an object within it.
fn key_of_error(error: &Value, key: &[String], depth: usize) -> Option<Vec<String>> {
    let fields = error.as_object()?;
    let values: Option<Vec<String>> = key
        .iter()
        .map(|column| match fields.get(column)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
        .collect();
    values.or_else(|| {
        let depth = depth.checked_sub(1)?;
        fields.values().find_map(|value| key_of_error(value, key, depth))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_refused_by_the_keys_that_the_errors_name() {
        let rows: Vec<(ChangeIndex, Bytes)> = (1..=3)
            .map(|id| {
                (
                    ChangeIndex(id + 10),
                    Bytes::from(format!("{{\"id\":{id},\"v\":\"x\"}}")),
                )
            })
            .collect();
        let key = ["id".to_owned()];
        let refused = |errors: Value, left_out| {
            let errors = errors.as_array().cloned().unwrap_or_default();
            super::refused(&rows, &key, &errors, left_out)
        };
        let found = refused(
            json!([{"id": 2, "error": "no"}, {"row": {"id": "3"}, "message": "never"}]),
            Some(2),
        );
        assert_eq!(
            found,
            Some([(1, "no".to_owned()), (2, "never".to_owned())].into())
        );
        for (errors, left_out) in [
            (json!([]), None),
            (json!([{"id": 2, "error": "no"}]), Some(2)),
            (json!([{"id": 9, "error": "no"}]), Some(1)),
            (json!([{"error": "no"}]), Some(1)),
            (json!([{"id": 2, "error": "no"}, {"id": 2, "error": "no"}]), None),
        ] {
            assert_eq!(refused(errors, left_out), None);
        }
    }
}
