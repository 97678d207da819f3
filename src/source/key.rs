//! The key of a row out of its image, so that capture need not write it twice.
//!
//! The image is walked from its beginning, and no further than to the last key column, which mostly is the first of all.

use memchr::memchr2;

/// The key columns of an entity.
pub(crate) struct KeyColumns {
    names: Vec<String>,
    /// What stands before each value: `{"a" : `, `, "b" : `.
    labels: Vec<String>,
}

impl KeyColumns {
    pub(crate) fn new(names: &[String]) -> Self {
        let label = |(nth, name): (usize, &String)| {
            let opening = if nth == 0 { "{" } else { ", " };
            format!("{opening}{} : ", serde_json::Value::from(name.as_str()))
        };
        Self {
            labels: names.iter().enumerate().map(label).collect(),
            names: names.to_owned(),
        }
    }

    /// The key of a row as a JSON object: byte by byte the text that the database makes of the same columns. A key column
    /// that the image lacks is null. None where the image is not a JSON object.
    pub(crate) fn of_image(&self, image: &str) -> Option<Box<str>> {
        // Mostly there are few, and then nothing but the key itself is allocated.
        let (mut few, mut many) = ([None; 4], Vec::new());
        let found = if self.names.len() <= few.len() {
            &mut few[..self.names.len()]
        } else {
            many.resize(self.names.len(), None);
            &mut many[..]
        };
        self.pick(image, found)?;
        let values = || found.iter().map(|value| value.unwrap_or("null"));
        let labels = self.labels.iter().map(String::len).sum::<usize>();
        let mut key = String::with_capacity(labels + values().map(str::len).sum::<usize>() + 1);
        for (label, value) in self.labels.iter().zip(values()) {
            key.push_str(label);
            key.push_str(value);
        }
        key.push('}');
        Some(key.into())
    }

    /// The values of the columns as they are written.
    fn pick<'a>(&self, object: &'a str, found: &mut [Option<&'a str>]) -> Option<()> {
        let bytes = object.as_bytes();
        let mut missing = found.len();
        let mut at = after_space(bytes, 0);
        if bytes.get(at) != Some(&b'{') {
            return None;
        }
        at = after_space(bytes, at + 1);
        while missing > 0 && bytes.get(at) != Some(&b'}') {
            let name_end = after_string(bytes, at)?;
            let name = &object[at..name_end];
            at = after_space(bytes, name_end);
            if bytes.get(at) != Some(&b':') {
                return None;
            }
            at = after_space(bytes, at + 1);
            let end = after_value(bytes, at)?;
            if let Some(place) = self.names.iter().position(|column| is(name, column)) {
                missing -= usize::from(found[place].is_none());
                found[place] = Some(object[at..end].trim_ascii_end());
            }
            at = after_space(bytes, end);
            match bytes.get(at)? {
                b',' => at = after_space(bytes, at + 1),
                b'}' => break,
                _ => return None,
            }
        }
        Some(())
    }
}

/// Whether a string as it is written, with its quotes, says the name.
fn is(written: &str, name: &str) -> bool {
    let plain = &written[1..written.len() - 1];
    plain == name
        || plain.contains('\\') && serde_json::from_str::<String>(written).is_ok_and(|said| said == name)
}

fn after_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// The place behind the string that begins here.
fn after_string(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// The place behind the value that begins here.
fn after_value(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0;
    loop {
        match bytes.get(at)? {
            b'"' => {
                at = after_string(bytes, at)?;
                if depth == 0 {
                    return Some(at);
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(image: &str, columns: &[&str]) -> Option<String> {
        let columns: Vec<_> = columns.iter().map(|&column| column.to_owned()).collect();
        KeyColumns::new(&columns).of_image(image).map(Into::into)
    }

    #[test]
    fn it_is_the_text_that_the_database_makes() {
        let image = r#"{"id":7,"a":{"b":[1,"}"]},"Room \"No\"":"x, \"y\" }","n":null,"t":true}"#;
        assert_eq!(key(image, &["id"]).unwrap(), r#"{"id" : 7}"#);
        assert_eq!(
            key(image, &["Room \"No\"", "t", "id"]).unwrap(),
            r#"{"Room \"No\"" : "x, \"y\" }", "t" : true, "id" : 7}"#
        );
        assert_eq!(key(image, &["a"]).unwrap(), r#"{"a" : {"b":[1,"}"]}}"#);
        assert_eq!(key("{ \"id\" : 7 }", &["id"]).unwrap(), r#"{"id" : 7}"#);
        let five = r#"{"a":1,"b":2,"c":3,"d":4,"e":5}"#;
        assert_eq!(
            key(five, &["a", "b", "c", "d", "e"]).unwrap(),
            r#"{"a" : 1, "b" : 2, "c" : 3, "d" : 4, "e" : 5}"#
        );
    }

    #[test]
    fn a_column_that_is_not_there_is_null_and_broken_text_has_no_key() {
        assert_eq!(key(r#"{"b":1}"#, &["id"]).unwrap(), r#"{"id" : null}"#);
        assert_eq!(key("{}", &["id"]).unwrap(), r#"{"id" : null}"#);
        for broken in [
            "",
            "[1]",
            "{\"id\":",
            "{\"id\"",
            "{\"id\" 7}",
            "{\"id\":\"x",
            "{\"id\":\"\\",
        ] {
            assert_eq!(key(broken, &["id"]), None, "{broken}");
        }
    }
}
