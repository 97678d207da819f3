//! What the operator API takes and returns of pauses.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::source::pauses::{PauseScope, Pauses};

/// What is to be paused or resumed: everything, unless it names an entity or files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PauseRequest {
    /// This entity alone.
    pub entity: Option<String>,
    /// Files alone.
    pub files: bool,
}

impl PauseRequest {
    /// What is meant.
    ///
    /// # Errors
    /// A configuration error if it names both.
    pub fn scope(self) -> Result<PauseScope> {
        match (self.entity, self.files) {
            (None, false) => Ok(PauseScope::All),
            (None, true) => Ok(PauseScope::Files),
            (Some(name), false) => Ok(PauseScope::Entity(name)),
            (Some(_), true) => Err(Error::config("pause or resume", "it names an entity and files")
                .remedy("ask for one after the other")),
        }
    }
}

/// What is paused after a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseStatus {
    /// Whether it was done.
    pub success: bool,
    /// Whether it was not so before.
    pub changed: bool,
    /// Everything that is paused now.
    pub paused: Pauses,
}
