//! When the files of a column go: not before a certain age, or only at some times of the week.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Catalogue, Entity};
use crate::error::Result;
use crate::weekly_times::WeeklyTimes;

/// How long a file must not have changed before it goes: `24h`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FileAge {
    pub(crate) age: Duration,
    /// As it was written.
    text: String,
}

impl TryFrom<String> for FileAge {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let age = crate::config::parse_duration(&text).map_err(|error| format!("after {error}, or 24h"))?;
        Ok(Self { age, text })
    }
}

impl From<FileAge> for String {
    fn from(age: FileAge) -> Self {
        age.text
    }
}

impl fmt::Display for FileAge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// See [`super::FileColumn::after`] and [`super::FileColumn::when`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FileTiming<'a> {
    pub(crate) after: Option<&'a FileAge>,
    pub(crate) when: Option<&'a WeeklyTimes>,
}

impl Catalogue {
    /// When files go that are uploaded to this directory.
    pub(crate) fn file_timing(&self, directory: &str) -> FileTiming<'_> {
        let mut files = self.entities.iter().flat_map(|entity| &entity.files);
        let of_directory = files.find(|file| file.directory == directory);
        of_directory.map_or_else(FileTiming::default, |file| FileTiming {
            after: file.after.as_ref(),
            when: file.when.as_ref(),
        })
    }
}

/// The timing of each upload directory, as the entities so far have it.
pub(super) type DirectoryTimings = HashMap<String, (Option<FileAge>, Option<WeeklyTimes>)>;

/// Columns that share a directory may share files: these go at one time.
pub(super) fn check_file_timing(entity: &Entity, known: &mut DirectoryTimings) -> Result<()> {
    for file in &entity.files {
        let own = (file.after.clone(), file.when.clone());
        let of_directory = known.entry(file.directory.clone()).or_insert_with(|| own.clone());
        if own != *of_directory {
            return Err(super::invalid(
                entity,
                format!(
                    "its file column {} has another after or when than another file column of the directory {}",
                    file.column, file.directory
                ),
            )
            .remedy("give both the same after and when, or a directory each"));
        }
    }
    Ok(())
}
