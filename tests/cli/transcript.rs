//! Whole command lines under snapshot: the arguments, what went to stdout and to stderr, and the exit code.
//!
//! A [`Transcript`] is compared with the file of its name below `snapshots`, after what varies from run to
//! run was replaced. A test fails on any difference. `INSTA_UPDATE=always cargo test --test main cli::`
//! writes the files again; read their diff before you commit it.

use std::fmt::Write;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// The program in a folder of its own, with no environment but what a test sets.
pub(super) struct Program {
    pub(super) folder: TempDir,
}

impl Program {
    pub(super) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// In a folder with this file.
    pub(super) fn with_file(name: &str, text: &str) -> Self {
        let program = Self::new();
        program.write(name, text);
        program
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub(super) fn output(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cloud-sync"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Exit code, stdout, stderr.
    pub(super) fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
        let output = self.output(arguments, variables);
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Command lines with what they printed, in the order in which they ran.
#[derive(Default)]
pub(super) struct Transcript {
    text: String,
    filters: Vec<(String, &'static str)>,
}

impl Transcript {
    /// Replaces what this regular expression matches, before the comparison.
    pub(super) fn hide(mut self, pattern: &str, replacement: &'static str) -> Self {
        self.filters.push((pattern.to_owned(), replacement));
        self
    }

    /// A line that says what follows.
    pub(super) fn heading(&mut self, text: &str) {
        writeln!(self.text, "# {text}\n").unwrap();
    }

    /// A file that the next commands read.
    pub(super) fn file(&mut self, name: &str, text: &str) {
        writeln!(self.text, "$ cat {name}\n{}", text.trim_end()).unwrap();
    }

    /// A command line, and what it printed.
    pub(super) fn command(&mut self, arguments: &[&str], variables: &[(&str, &str)], output: Output) {
        let quoted = |text: &str| match text.contains([' ', '"', ';', '*', '?', '#', '[']) || text.is_empty()
        {
            true => format!("'{text}'"),
            false => text.to_owned(),
        };
        let mut line = "$".to_owned();
        for (name, value) in variables {
            write!(line, " {name}={}", quoted(value)).unwrap();
        }
        line.push_str(" cloud-sync");
        for argument in arguments {
            write!(line, " {}", quoted(argument)).unwrap();
        }
        writeln!(self.text, "{line}").unwrap();
        for line in text(output.stdout).lines() {
            writeln!(self.text, "{}", line.trim_end()).unwrap();
        }
        for line in text(output.stderr).lines() {
            writeln!(self.text, "{}", format!("stderr: {line}").trim_end()).unwrap();
        }
        writeln!(self.text, "exit code: {}\n", output.status.code().unwrap()).unwrap();
    }

    /// Compares with the file `snapshots/FOLDER/NAME.snap`.
    pub(super) fn assert(self, folder: &str, name: &str) {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(format!("snapshots/{folder}"));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        for (pattern, replacement) in &self.filters {
            settings.add_filter(pattern, *replacement);
        }
        settings.bind(|| insta::assert_snapshot!(name, self.text));
    }
}
