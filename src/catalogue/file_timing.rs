//! When the files of a column go: not before a certain age, or only at some times of the week.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
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
        let age = text.parse::<SignedDuration>().ok();
        let age = age.and_then(|age| Duration::try_from(age).ok());
        let age = age.ok_or("after must be a time span with its unit, such as 90m or 24h")?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_one_directory_have_one_timing() {
        let leaves = Entity::new("leaves", "tbl_leave", &["leave_id"]).file("slip", "url", "slips", false);
        let mut passes = Entity::new("passes", "tbl_pass", &["pass_id"]).file("slip", "url", "slips", false);
        passes.files[0].after = Some(FileAge::try_from("24h".to_owned()).unwrap());
        let refused = Catalogue::new(vec![leaves, passes.clone()])
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("passes") && refused.contains("directory slips"),
            "{refused}"
        );
        let catalogue = Catalogue::new(vec![passes]).unwrap();
        let timing = catalogue.file_timing("slips");
        assert_eq!(timing.after.unwrap().age, Duration::from_secs(24 * 3600));
        assert_eq!(catalogue.file_timing("photos"), FileTiming::default());
    }

    #[test]
    fn what_is_no_age_is_refused_with_an_example() {
        for text in ["", "a day", "24", "-1h"] {
            let why = FileAge::try_from(text.to_owned()).unwrap_err();
            assert!(why.contains("24h"), "{text}: {why}");
        }
    }
}
