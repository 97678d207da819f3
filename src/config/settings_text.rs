//! The settings file's text, and errors that name a line of it.

use std::path::Path;

use crate::error::Error;

/// The file's path and text, to name a line of it in an error.
pub(super) struct SettingsText<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl SettingsText<'_> {
    pub(super) fn line_of(&self, span: &std::ops::Range<usize>) -> usize {
        let end = span.start.min(self.text.len());
        1 + self.text.as_bytes()[..end]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
    }

    /// Makes an error about `subject` at `span` of this file.
    pub(super) fn error_at(
        &self,
        subject: &str,
        span: &std::ops::Range<usize>,
        cause: impl Into<String>,
    ) -> Error {
        Error::config(
            format!(
                "use {subject} in {}, line {}",
                self.path.display(),
                self.line_of(span)
            ),
            cause,
        )
    }
}
