//! Places in the settings file, as errors name them.

use std::path::Path;

use crate::error::Error;

/// The file's text and name, to tell places in it.
pub(super) struct SettingsText<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl SettingsText<'_> {
    pub(super) fn line(&self, span: &std::ops::Range<usize>) -> usize {
        let end = span.start.min(self.text.len());
        1 + self.text.as_bytes()[..end]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
    }

    /// An error about `subject` in this file.
    pub(super) fn wrong(
        &self,
        subject: &str,
        span: &std::ops::Range<usize>,
        cause: impl Into<String>,
    ) -> Error {
        Error::config(
            format!(
                "use {subject} in {}, line {}",
                self.path.display(),
                self.line(span)
            ),
            cause,
        )
    }
}
