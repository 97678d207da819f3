//! `setup --answers`: a file that answers what the interactive form asks.

use std::path::Path;

use crate::error::{Error, Result};

/// The answers. What is missing gets the form's own default.
pub(crate) struct SetupAnswers {
    /// The answers to the questions for settings: the setting and its value.
    settings: Vec<(&'static str, String)>,
    /// Whether the settings are written; yes.
    pub(crate) write: bool,
    /// Whether capture is installed in the database; yes.
    pub(crate) install_capture: bool,
}

/// The names of answers, and of the settings that they are for.
const SETTINGS: [(&str, &str); 4] = [
    ("database_url", "source.database_url"),
    ("cloud_url", "cloud.url"),
    ("cloud_key", "cloud.key"),
    ("media_root", "media.root"),
];

impl SetupAnswers {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read; a configuration error that names the answer, and no value.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let operation = || format!("read the answers in {}", path.display());
        let wrong = |cause: String| {
            Error::config(operation(), cause).remedy(
                "the answers are database_url, cloud_url, cloud_key and media_root, in quotes, and write and \
                 install_capture, true or false",
            )
        };
        let text = std::fs::read_to_string(path).map_err(|error| Error::local(operation(), error))?;
        let table = text.parse::<toml::Table>();
        let table = table.map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            wrong(format!("line {line} is no TOML"))
        })?;
        let mut answers = Self {
            settings: Vec::new(),
            write: true,
            install_capture: true,
        };
        for (name, value) in table {
            let setting = SETTINGS.iter().find(|(answer, _)| *answer == name);
            match (name.as_str(), value) {
                ("write", toml::Value::Boolean(value)) => answers.write = value,
                ("install_capture", toml::Value::Boolean(value)) => answers.install_capture = value,
                ("write" | "install_capture", _) => {
                    return Err(wrong(format!("{name} is neither true nor false")));
                }
                (_, toml::Value::String(value)) if setting.is_some() => {
                    answers
                        .settings
                        .extend(setting.map(|(_, setting)| (*setting, value)));
                }
                _ if setting.is_some() => return Err(wrong(format!("{name} is no text in quotes"))),
                _ => return Err(wrong(format!("there is no answer {name}"))),
            }
        }
        Ok(answers)
    }

    /// The answer to the question for a setting.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        let mut settings = self.settings.iter();
        settings.find_map(|(setting, value)| (*setting == name).then_some(value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SetupAnswers> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        SetupAnswers::read(file.path())
    }

    #[test]
    fn answers_are_read_and_unknown_ones_are_named_without_a_value() {
        let answers = read("cloud_url = \"https://cloud.example/api\"\ninstall_capture = false\n").unwrap();
        assert_eq!(answers.setting("cloud.url"), Some("https://cloud.example/api"));
        assert_eq!(answers.setting("cloud.key"), None);
        assert!(answers.write && !answers.install_capture);
        for (text, named) in [
            ("write = true\ncloud_ky = \"the-key\"", "cloud_ky"),
            ("cloud_key = \"the-key\"\nwrite = \"the-key\"", "write is neither"),
            ("cloud_key = [\"the-key\"]", "cloud_key is no text"),
            ("write = true\ncloud_key = the-key", "line 2"),
        ] {
            let error = read(text).err().unwrap().to_string();
            assert!(error.contains(named) && !error.contains("the-key"), "{error}");
        }
    }
}
