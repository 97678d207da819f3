//! The wire contract as files: each request that the client writes, and each answer that the receiver gives.
//!
//! A file is an HTTP message as people write it: the first line, the headers by name, a blank line, the body.
//! What differs from run to run (ports, boundaries, times) is a word in capitals. The requests that the
//! client writes are the ones that the receiver gets here, and the answers that the receiver gives are the
//! ones that the client reads here. So a file that changes is a change of the contract: outside programs rely
//! on it.
//!
//! `UPDATE_GOLDEN=1 cargo test --test main contract::`, run twice, writes the files again; then read what
//! `git diff` says.

mod answers;
mod reading;
mod requests;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

/// The files of one folder, and which of them were compared.
struct Golden {
    folder: &'static str,
    compared: BTreeSet<String>,
}

impl Golden {
    fn new(folder: &'static str) -> Self {
        Self {
            folder,
            compared: BTreeSet::new(),
        }
    }

    /// Compares a message with its file.
    fn compare(&mut self, name: &str, message: &Message) {
        let (path, text) = (file(self.folder, name), message.text());
        if updating() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let expected = read(self.folder, name);
        assert!(
            expected == text,
            "{} differs.\n--- expected\n{expected}\n--- is\n{text}",
            path.display()
        );
        assert!(self.compared.insert(format!("{name}.http")), "{name} twice");
    }

    /// Fails if the folder has a file that was not compared.
    fn finish(self) {
        let folder = file(self.folder, "x");
        let files = std::fs::read_dir(folder.parent().unwrap()).unwrap();
        let files: BTreeSet<String> = files
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(files, self.compared);
    }
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

fn file(folder: &str, name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/contract/{folder}/{name}.http"))
}

fn read(folder: &str, name: &str) -> String {
    let path = file(folder, name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A request or an answer.
#[derive(Debug, Clone)]
struct Message {
    /// Method and path, or the status.
    first_line: String,
    /// By name.
    headers: Vec<(String, String)>,
    body: String,
}

impl Message {
    fn new<'h>(
        first_line: String,
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
        body: &[u8],
    ) -> Self {
        let mut headers: Vec<(String, String)> = headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value).into_owned()))
            .collect();
        headers.sort();
        Self {
            first_line,
            headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// The message of a file.
    fn read(folder: &str, name: &str) -> Self {
        let text = read(folder, name);
        let (head, body) = text.split_once("\n\n").unwrap();
        let mut lines = head.lines();
        let first_line = lines.next().unwrap().to_owned();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        Self {
            first_line,
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: body.to_owned(),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.first_line);
        for (name, value) in &self.headers {
            writeln!(text, "{name}: {value}").unwrap();
        }
        text.push('\n');
        // A file's lines end in one way.
        text.push_str(&self.body.replace("\r\n", "\n"));
        text
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Puts a word in place of a header's value.
    fn mask_header(&mut self, name: &str, word: &str) {
        for (_, value) in self.headers.iter_mut().filter(|(other, _)| other == name) {
            word.clone_into(value);
        }
    }

    /// Puts a word in place of a text, wherever it is.
    fn mask(&mut self, text: &str, word: &str) {
        self.body = self.body.replace(text, word);
        for (_, value) in &mut self.headers {
            *value = value.replace(text, word);
        }
    }
}
