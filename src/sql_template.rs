//! SQL out of the files under `sql/`: named statements, and templates that are filled in.
//!
//! A file under `sql/source` holds the statements of one concern. Each begins with a line `-- name: …`, and
//! what goes into other statements with `-- part: …`; comments below that line say what it does, and are not
//! sent. [`statement!`](statement) takes one out when the program is compiled: a name that is not there does
//! not compile. What a statement is put together from at run time is a placeholder, `{name}` in lower case,
//! which [`fill`] replaces by SQL: quoted names and texts, numbers, or other statements. What was put in is
//! never scanned again.

/// The statement or the part of this name in `sql/source/FILE.sql`, without its comments.
macro_rules! statement {
    ($file:literal, $name:literal) => {
        const {
            $crate::sql_template::named(
                include_str!(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/sql/source/",
                    $file,
                    ".sql"
                )),
                $name,
            )
        }
    };
}
pub(crate) use statement;

/// What the first line of a statement begins with, and that of a part of statements.
const MARKS: [&[u8]; 2] = [b"-- name: ", b"-- part: "];

/// The statement of this name in a file's text. Fails to compile if there is none.
pub(crate) const fn named(file: &'static str, name: &str) -> &'static str {
    let bytes = file.as_bytes();
    let mut line = 0;
    while line < bytes.len() {
        let next = next_line(bytes, line);
        let at = line + MARKS[0].len();
        if is_mark(bytes, line) && begins(bytes, at, name.as_bytes()) && at + name.len() + 1 == next {
            return body(bytes, next);
        }
        line = next;
    }
    panic!("the file has no statement of this name")
}

/// The statement that begins at this line or below its comments, up to the next one's name.
const fn body(bytes: &'static [u8], mut first: usize) -> &'static str {
    while begins(bytes, first, b"--") && !is_mark(bytes, first) {
        first = next_line(bytes, first);
    }
    let mut end = first;
    while end < bytes.len() && !is_mark(bytes, end) {
        end = next_line(bytes, end);
    }
    while end > first && bytes[end - 1].is_ascii_whitespace() {
        end -= 1;
    }
    assert!(end > first, "the statement is empty");
    let (upto, _) = bytes.split_at(end);
    let (_, body) = upto.split_at(first);
    match std::str::from_utf8(body) {
        Ok(body) => body,
        Err(_) => panic!("lines end in characters of their own"),
    }
}

/// Whether a statement or a part begins at this line.
const fn is_mark(bytes: &[u8], line: usize) -> bool {
    begins(bytes, line, MARKS[0]) || begins(bytes, line, MARKS[1])
}

/// Where the next line begins.
const fn next_line(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() && bytes[at] != b'\n' {
        at += 1;
    }
    if at < bytes.len() { at + 1 } else { at }
}

/// Whether these words are there.
const fn begins(bytes: &[u8], at: usize, words: &[u8]) -> bool {
    if at + words.len() > bytes.len() {
        return false;
    }
    let mut index = 0;
    while index < words.len() {
        if bytes[at + index] != words[index] {
            return false;
        }
        index += 1;
    }
    true
}

/// A template without its header, each `{name}` replaced by the value of that name. Values are not scanned.
///
/// A placeholder without a value is a mistake of ours, which a build with debug assertions reports.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut rest = template;
    while rest.starts_with("--") {
        rest = rest.split_once('\n').map_or("", |(_, after)| after);
    }
    let mut sql = String::with_capacity(rest.len() * 4);
    while let Some(open) = rest.find('{') {
        sql.push_str(&rest[..open]);
        rest = &rest[open + 1..];
        let placeholder = rest.split_once('}').filter(|(name, _)| is_placeholder_name(name));
        let value = placeholder.and_then(|(name, after)| {
            let value = values.iter().find(|(known, _)| *known == name);
            debug_assert!(value.is_some(), "placeholder {name} has no value in: {template}");
            Some((value?.1, after))
        });
        match value {
            Some((value, after)) => {
                sql.push_str(value);
                rest = after;
            }
            None => sql.push('{'),
        }
    }
    sql.push_str(rest.trim_end());
    sql
}

fn is_placeholder_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|letter| letter.is_ascii_lowercase() || letter == b'_')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    const FILE: &str = "-- What the file is about.\n\n-- name: first\n-- What it does.\nselect 1\n\n\
                        -- part: second\nselect 2,\n-- inside\n3\n";

    #[test]
    fn a_statement_is_found_by_its_whole_name_and_comes_without_its_comments() {
        assert_eq!(named(FILE, "first"), "select 1");
        assert_eq!(named(FILE, "second"), "select 2,\n-- inside\n3");
        assert!(std::panic::catch_unwind(|| named(FILE, "sec")).is_err());
        assert!(std::panic::catch_unwind(|| named("-- name: empty\n-- nothing\n", "empty")).is_err());
    }

    #[test]
    fn a_value_is_never_scanned_again_and_what_is_no_placeholder_stays() {
        let sql = fill(
            "-- {a}\nselect {a}, {b}, '{}', '{\"x\":1}' {c",
            &[("a", "\"{b}\""), ("b", "2")],
        );
        assert_eq!(sql, "select \"{b}\", 2, '{}', '{\"x\":1}' {c");
    }

    #[test]
    #[should_panic(expected = "placeholder b has no value")]
    fn a_placeholder_without_a_value_is_a_mistake() {
        fill("select {a}, {b}", &[("a", "1")]);
    }

    fn files(folder: &Path, ending: &str, texts: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, ending, texts);
            } else if path.extension().is_some_and(|found| found == ending) {
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                let text = std::fs::read_to_string(&path).unwrap();
                texts.entry(name).or_default().push_str(&text);
            }
        }
    }

    /// The name in a line that begins a statement or a part.
    fn name(line: &str) -> Option<&str> {
        let part = line.strip_prefix("-- part: ");
        part.or_else(|| line.strip_prefix("-- name: "))
    }

    #[test]
    fn each_named_statement_has_one_name_a_header_and_a_user() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut statements, mut sources) = (BTreeMap::new(), BTreeMap::new());
        files(&package.join("sql/source"), "sql", &mut statements);
        files(&package.join("src"), "rs", &mut sources);
        for (file, text) in &statements {
            assert!(
                text.starts_with("-- ") && name(text).is_none(),
                "{file} has no header"
            );
            let names: Vec<&str> = text.lines().filter_map(name).collect();
            assert!(!names.is_empty(), "{file} names no statement");
            for name in &names {
                let count = names.iter().filter(|other| other == &name).count();
                assert_eq!(count, 1, "{file} has {name} {count} times");
                let used = format!("statement!(\"{file}\", \"{name}\")");
                assert!(
                    sources.values().any(|source| source.contains(&used)),
                    "nothing uses {used}"
                );
            }
        }
    }
}
