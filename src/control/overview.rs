//! What the page shows besides the status.

use std::collections::BTreeMap;

use crate::drain::Incident;
use crate::quarantine::QuarantineEntry;
use crate::source::overview::RecentFile;

/// What the page shows besides the status.
#[derive(Debug, Clone, Default)]
pub struct Overview {
    /// The last times when it did not replicate, the newest first.
    pub incidents: Vec<Incident>,
    /// How many rows of each entity were within its retention when a sync last compared it, by its name.
    pub compared: BTreeMap<String, u64>,
    /// What the source says; `None` if it does not answer.
    pub source: Option<SourceOverview>,
}

/// What the source says.
#[derive(Debug, Clone, Default)]
pub struct SourceOverview {
    /// How many changes of each entity wait, by its name; entities of which none waits are not there.
    pub waiting: BTreeMap<String, u64>,
    /// How many rows of each entity are in quarantine, by its name; entities of which none is are not there.
    pub quarantined: BTreeMap<String, u64>,
    /// The oldest rows in quarantine.
    pub quarantine: Vec<QuarantineEntry>,
    /// The files that came last of each state.
    pub files: Vec<RecentFile>,
}
