//! The SQL statements that the sources and the files under `sql/` hold, and whether a server's log has each of them.
//!
//! A small scanner reads the string literals of Rust files: those that begin with a verb of SQL, those that
//! are handed to a call that sends SQL, and the files of `include_str!`. What a statement is put together
//! from is not followed: of a `format!` string its constant parts are looked for, in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a statement begins with.
const VERBS: [&str; 34] = [
    "alter",
    "analyze",
    "begin",
    "call",
    "close",
    "comment",
    "commit",
    "copy",
    "create",
    "deallocate",
    "declare",
    "delete",
    "discard",
    "do",
    "drop",
    "execute",
    "explain",
    "fetch",
    "grant",
    "insert",
    "listen",
    "lock",
    "notify",
    "prepare",
    "reset",
    "revoke",
    "rollback",
    "savepoint",
    "select",
    "set",
    "truncate",
    "update",
    "vacuum",
    "with",
];

/// Calls that send their first argument to a database.
const SENDING: [&str; 20] = [
    "batch_execute",
    "copy_in",
    "copy_out",
    "execute",
    "execute_raw",
    "execute_typed",
    "prepare",
    "prepare_typed",
    "query",
    "query_as",
    "query_one",
    "query_opt",
    "query_raw",
    "query_scalar",
    "query_typed",
    "query_typed_one",
    "query_typed_opt",
    "query_typed_raw",
    "raw_sql",
    "simple_query",
];

/// A text of SQL in the sources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Statement {
    /// The file below the package's folder, and the line of it.
    pub(super) place: String,
    /// Its constant parts, in their order. What is between them is put in at run time.
    parts: Vec<String>,
    /// Whether it is all that is sent, from its beginning to its end.
    is_whole: bool,
}

impl Statement {
    fn new(place: String, text: &str, is_whole: bool) -> Self {
        Self {
            place,
            parts: parts(text),
            is_whole,
        }
    }

    /// Its beginning, to be named by.
    pub(super) fn beginning(&self) -> String {
        self.parts.join("…").chars().take(90).collect()
    }

    /// Whether enough of it is constant to tell it from others.
    fn can_be_told(&self) -> bool {
        self.parts.len() == 1 || self.parts.iter().map(String::len).sum::<usize>() >= 10
    }

    /// Whether a sent text, as [`normal`] gives it, is this statement or holds it.
    fn is_in(&self, sent: &str) -> bool {
        let (first, last) = (&self.parts[0], &self.parts[self.parts.len() - 1]);
        if self.is_whole {
            return sent.starts_with(first.as_str())
                && sent.ends_with(last.as_str())
                && (self.parts.len() > 1 || sent.len() == first.len())
                && follows(&sent[first.len()..], &self.parts[1..]);
        }
        let is_word =
            |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
        sent.match_indices(first.as_str()).any(|(at, _)| {
            let rest = &sent[at + first.len()..];
            !is_word(sent[..at].chars().next_back())
                && (self.parts.len() > 1 || !is_word(rest.chars().next()))
                && follows(rest, &self.parts[1..])
        })
    }
}

/// Whether the parts stand in the text in their order.
fn follows(text: &str, parts: &[String]) -> bool {
    let mut rest = text;
    parts.iter().all(|part| match rest.split_once(part.as_str()) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

/// The constant parts of a text with `{…}` in it.
fn parts(text: &str) -> Vec<String> {
    let text = normal(text).replace("{{", "\u{1}").replace("}}", "\u{2}");
    let mut parts = vec![String::new()];
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        parts.last_mut().unwrap().push_str(before);
        match after.split_once('}') {
            Some((name, after)) if !name.contains(char::is_whitespace) => {
                parts.push(String::new());
                rest = after;
            }
            _ => {
                parts.last_mut().unwrap().push('{');
                rest = after;
            }
        }
    }
    parts.last_mut().unwrap().push_str(rest);
    let braces = |part: &String| part.trim().replace('\u{1}', "{").replace('\u{2}', "}");
    parts.iter().map(braces).collect()
}

/// A text without comments, each white space one space.
fn normal(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.split_once("--").map_or(line, |(code, _)| code))
        .collect();
    let words: Vec<&str> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
    words.join(" ")
}

/// The package's folder.
fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with this ending at a path below the package's folder, which may be one file.
pub(super) fn files(at: &str, ending: &str) -> Vec<PathBuf> {
    fn add(path: &Path, ending: &str, files: &mut Vec<PathBuf>) {
        if path.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                add(&entry.unwrap().path(), ending, files);
            }
        } else if path.extension().is_some_and(|found| found == ending) {
            files.push(path.to_owned());
        }
    }
    let mut files = Vec::new();
    add(&package().join(at), ending, &mut files);
    files.sort();
    files
}

/// Whether a file can send SQL: it names a library that does.
pub(super) fn can_send(file: &Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap();
    ["tokio_postgres", "sqlx"].iter().any(|name| text.contains(name))
}

/// The statements of these Rust files, of the SQL files that they include, and of the SQL files in these folders. Unit
/// tests are left out, and what is not SQL although it begins as if it were.
pub(super) fn statements(sources: &[PathBuf], folders: &[&str], no_sql: &[&str]) -> Vec<Statement> {
    let mut found = Vec::new();
    let at = |path: &Path| path.strip_prefix(package()).unwrap().display().to_string();
    for path in sources {
        let text = std::fs::read_to_string(path).unwrap();
        if path.ends_with("tests.rs") {
            continue;
        }
        for literal in literals(&text) {
            let place = format!("{}:{}", at(path), literal.line);
            if literal
                .calls
                .last()
                .is_some_and(|(call, _)| call == "include_str!")
            {
                let file = path.parent().unwrap().join(&literal.text).canonicalize().unwrap();
                if file.extension().is_some_and(|ending| ending == "sql") {
                    let text = std::fs::read_to_string(&file).unwrap();
                    found.push(Statement::new(at(&file), &text, false));
                }
            } else if no_sql.contains(&literal.text.as_str()) {
            } else if let Some(is_whole) = literal.is_sql() {
                found.push(Statement::new(place, &literal.text, is_whole));
            }
        }
    }
    for path in folders.iter().flat_map(|folder| files(folder, "sql")) {
        let text = std::fs::read_to_string(&path).unwrap();
        found.extend(of_sql_file(&at(&path), &text));
    }
    found.sort();
    found.dedup();
    found
}

/// The statements of an SQL file: each `-- name: …` is all that is sent, and each `-- part: …` is a part of statements,
/// which is looked for if it begins as one. A file without names is sent as it is, with other text around it.
fn of_sql_file(place: &str, text: &str) -> Vec<Statement> {
    let mut found: Vec<(String, String, bool)> = Vec::new();
    for line in text.lines() {
        let name = line.strip_prefix("-- name: ");
        match (name.or_else(|| line.strip_prefix("-- part: ")), found.last_mut()) {
            (Some(known_as), _) => {
                found.push((format!("{place}: {known_as}"), String::new(), name.is_some()));
            }
            (None, Some((_, body, _))) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    if found.is_empty() {
        return vec![Statement::new(place.to_owned(), text, false)];
    }
    let is_looked_for =
        |(_, body, is_whole): &(String, String, bool)| *is_whole || begins_as_sql(&normal(body));
    let statements = found.into_iter().filter(is_looked_for);
    statements
        .map(|(place, body, is_whole)| Statement::new(place, &body, is_whole))
        .collect()
}

/// Whether a text begins with a verb of SQL and goes on.
fn begins_as_sql(text: &str) -> bool {
    let word: String = text
        .chars()
        .take_while(|letter| letter.is_ascii_lowercase())
        .collect();
    let after = text[word.len()..].chars().next();
    VERBS.contains(&word.as_str()) && after.is_some_and(|after| after.is_whitespace() || after == ';')
}

/// A string literal of a Rust file.
#[derive(Debug)]
struct Literal {
    line: usize,
    text: String,
    /// The calls and macros that it is an argument of, the innermost last; and whether it is the first
    /// argument.
    calls: Vec<(String, bool)>,
}

impl Literal {
    /// Whether it is SQL, and then whether it is all that is sent.
    fn is_sql(&self) -> Option<bool> {
        let text = self.text.trim_start();
        let word: String = text
            .chars()
            .take_while(|letter| letter.is_ascii_lowercase())
            .collect();
        let after = text[word.len()..].chars().next();
        let begins =
            VERBS.contains(&word.as_str()) && after.is_none_or(|after| after.is_whitespace() || after == ';');
        let mut calls = self.calls.iter().rev().skip_while(|(call, is_first)| {
            *is_first && ["format!", "AssertSqlSafe", "sqlx::AssertSqlSafe", ""].contains(&call.as_str())
        });
        let is_sent = calls.next().is_some_and(|(call, is_first)| {
            *is_first
                && call
                    .rsplit("::")
                    .next()
                    .is_some_and(|call| SENDING.contains(&call))
        });
        let is_message = self.calls.iter().any(|(call, _)| {
            call.contains("Error::")
                || call.starts_with("tracing::")
                || ["remedy", "failed", "command"].contains(&call.as_str())
        });
        match (is_sent, is_message) {
            (true, _) => Some(true),
            // A single word is a name, unless it is sent.
            (false, false) if begins && after.is_some() => Some(false),
            _ => None,
        }
    }
}

/// The string literals of a Rust file, up to its unit tests.
fn literals(source: &str) -> Vec<Literal> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let letters: Vec<char> = source.chars().collect();
    let mut found = Vec::new();
    // Each open bracket: the name before it, and how many commas have followed.
    let mut open: Vec<(char, String, usize)> = Vec::new();
    let mut name = String::new();
    let (mut at, mut line) = (0, 1);
    while at < letters.len() {
        let letter = letters[at];
        let next = letters.get(at + 1).copied().unwrap_or(' ');
        let begins_word = name.is_empty();
        let raw = match (letter, next) {
            ('r', '"' | '#') if begins_word => {
                let hashes = letters[at + 1..]
                    .iter()
                    .take_while(|&&letter| letter == '#')
                    .count();
                (letters.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
            }
            _ => None,
        };
        match letter {
            '/' if next == '/' => {
                while at < letters.len() && letters[at] != '\n' {
                    at += 1;
                }
                continue;
            }
            '"' | 'r' if letter == '"' || raw.is_some() => {
                let (text, end) = match raw {
                    Some(hashes) => raw_text(&letters, at + 2 + hashes, hashes),
                    None => text(&letters, at + 1),
                };
                let inner = open
                    .iter()
                    .rposition(|(bracket, ..)| *bracket == '{')
                    .map_or(0, |at| at + 1);
                found.push(Literal {
                    line,
                    text,
                    calls: open[inner..]
                        .iter()
                        .map(|(bracket, name, commas)| (name.clone(), *bracket == '(' && *commas == 0))
                        .collect(),
                });
                line += letters[at..end].iter().filter(|&&letter| letter == '\n').count();
                at = end;
                name.clear();
                continue;
            }
            // A letter, not a lifetime.
            '\'' if next == '\\' || letters.get(at + 2) == Some(&'\'') => {
                at += if next == '\\' { 3 } else { 2 };
                while at < letters.len() && letters[at] != '\'' {
                    at += 1;
                }
                name.clear();
            }
            '(' | '[' | '{' => open.push((letter, std::mem::take(&mut name), 0)),
            ')' | ']' | '}' => {
                open.pop();
                name.clear();
            }
            ',' => {
                if let Some((_, _, commas)) = open.last_mut() {
                    *commas += 1;
                }
                name.clear();
            }
            '\n' => line += 1,
            _ if letter.is_alphanumeric() || "_:!".contains(letter) => name.push(letter),
            _ => name.clear(),
        }
        at += 1;
    }
    found
}

/// A literal's text from behind its first quote, and where the code goes on.
fn text(letters: &[char], mut at: usize) -> (String, usize) {
    let mut text = String::new();
    while letters[at] != '"' {
        if letters[at] != '\\' {
            text.push(letters[at]);
            at += 1;
            continue;
        }
        match letters[at + 1] {
            '\n' => {
                at += 2;
                while letters[at].is_whitespace() {
                    at += 1;
                }
                continue;
            }
            'n' => text.push('\n'),
            't' => text.push('\t'),
            other => text.push(other),
        }
        at += 2;
    }
    (text, at + 1)
}

/// The same of a raw literal with so many hashes.
fn raw_text(letters: &[char], from: usize, hashes: usize) -> (String, usize) {
    let end: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let mut at = from;
    while letters[at..at + end.len()] != end {
        at += 1;
    }
    (letters[from..at].iter().collect(), at + end.len())
}

/// A session in a server's log: the process and the name that it gave itself, and each text that it sent, in
/// their order.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) role: String,
    pub(super) name: String,
    pub(super) texts: Vec<String>,
}

/// The prefix of the log's lines that [`sessions`] reads.
pub(super) const PREFIX: &str = "log_line_prefix=<%c|%u|%a|";

/// The sessions of a server's log, which was written with `log_statement=all` and [`PREFIX`].
pub(super) fn sessions(log: &str) -> Vec<Sent> {
    let mut sessions: BTreeMap<&str, Sent> = BTreeMap::new();
    // A line that begins with a tab goes on with the one before it.
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        match (line.strip_prefix('\t'), entries.last_mut()) {
            (Some(more), Some(entry)) => {
                entry.push('\n');
                entry.push_str(more);
            }
            _ => entries.push(line.to_owned()),
        }
    }
    for entry in &entries {
        let Some(entry) = entry.strip_prefix('<') else {
            continue;
        };
        let mut fields = entry.splitn(4, '|');
        let (Some(id), Some(role), Some(name), Some(message)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let simple = message.strip_prefix("LOG:  statement: ");
        let prepared = || {
            message
                .strip_prefix("LOG:  execute ")?
                .split_once(": ")
                .map(|(_, text)| text)
        };
        if let Some(text) = simple.or_else(prepared) {
            let session = sessions.entry(id).or_default();
            (session.role, session.name) = (role.to_owned(), name.to_owned());
            session.texts.push(normal(text));
        }
    }
    sessions.into_values().collect()
}

/// Statements that no text of a log holds, or that cannot be told from others.
pub(super) fn unseen<'a>(statements: &'a [Statement], sessions: &[&Sent]) -> Vec<&'a Statement> {
    let texts: BTreeSet<&str> = sessions
        .iter()
        .flat_map(|session| &session.texts)
        .map(String::as_str)
        .collect();
    let is_seen =
        |statement: &&Statement| statement.can_be_told() && texts.iter().any(|text| statement.is_in(text));
    statements
        .iter()
        .filter(|statement| !is_seen(statement))
        .collect()
}

#[test]
fn statements_are_found_in_an_sql_file() {
    let file = "-- About the file.\n\n-- name: find\n-- What it does.\nselect a\nfrom {table} -- why\n\n\
                -- part: known\nselect 1\n\n-- part: within\na > {limit}\n";
    let found: Vec<(String, String, bool)> = of_sql_file("x.sql", file)
        .into_iter()
        .map(|statement| (statement.place.clone(), statement.beginning(), statement.is_whole))
        .collect();
    let expected = [
        ("x.sql: find", "select a from…", true),
        ("x.sql: known", "select 1", false),
    ];
    let expected = expected.map(|(place, text, is_whole)| (place.to_owned(), text.to_owned(), is_whole));
    assert_eq!(found, expected);
    let whole = of_sql_file("y.sql", "-- About it.\ncreate function f();\n");
    assert_eq!(
        whole,
        [Statement::new("y.sql".to_owned(), "create function f();", false)]
    );
}

#[test]
fn the_schema_of_the_site_is_known_in_one_folder_only() {
    let mut found = Vec::new();
    for path in files("src", "rs") {
        if path.starts_with(package().join("src/source")) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let literals = literals(&text).into_iter();
        let naming = literals.filter(|literal| literal.text.contains("cloud_sync."));
        found.extend(naming.map(|literal| format!("{}:{}", path.display(), literal.line)));
    }
    assert!(
        found.is_empty(),
        "statements on cloud_sync.* belong to src/source: {found:#?}"
    );
}

#[test]
fn statements_are_found_in_a_source_and_missed_in_a_log() {
    // Given a source with statements of every form, and with what is none
    let source = r##"
        /// "select 1 from a_comment"
        const FIND: &str = "select a from t \
             where b = '{}'";
        fn run<'a>(client: &'a Client, letter: char) -> Result<()> {
            let open = '(';
            client.batch_execute(&format!("{FIND}; set lock_timeout = '{time}'")).await?;
            client.query_one(r#"select "quoted" from u"#, &[&id]).await?;
            sqlx::raw_sql("commit").execute(c).await?;
            sql.push_str("drop trigger if exists x on y;\n");
            Err(Error::config("update a setting", "delete it").remedy("set it to 1"))
        }
        #[cfg(test)]
        mod tests { const NONE: &str = "select 1 from a_test"; }"##;
    let found: Vec<Statement> = literals(source)
        .iter()
        .filter_map(|literal| {
            Some(Statement::new(
                literal.line.to_string(),
                &literal.text,
                literal.is_sql()?,
            ))
        })
        .collect();
    let told: Vec<(&str, String, bool)> = found
        .iter()
        .map(|one| (one.place.as_str(), one.beginning(), one.is_whole))
        .collect();
    assert_eq!(
        told,
        [
            ("3", "select a from t where b = '…'".to_owned(), false),
            ("7", "…; set lock_timeout = '…'".to_owned(), true),
            ("8", "select \"quoted\" from u".to_owned(), true),
            ("9", "commit".to_owned(), true),
            ("10", "drop trigger if exists x on y;".to_owned(), false),
        ]
    );
    // when a server has logged some of them, then the others are missed.
    let log = "<1.a|program|cloud-sync drain|LOG:  statement: select a from t\n\twhere b = '7'; set \
     lock_timeout = '2s'\n\
               <1.b|program|cloud-sync drain|LOG:  execute s1: select \"quoted\" from u where true\n\
               <1.b|program|cloud-sync drain|DETAIL:  parameters: $1 = 'commit'\n\
               <1.a|program|cloud-sync drain|LOG:  statement: begin; drop trigger if exists x on y; commit\n";
    let sessions = sessions(log);
    assert_eq!(sessions.len(), 2);
    assert_eq!(sessions[0].texts.len(), 2);
    let sent: Vec<&Sent> = sessions.iter().collect();
    let missed: Vec<&str> = unseen(&found, &sent)
        .iter()
        .map(|one| one.place.as_str())
        .collect();
    assert_eq!(missed, ["8", "9"]);
}
