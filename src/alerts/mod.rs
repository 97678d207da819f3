//! Alerts without a monitoring system: a webhook and e-mails that say what needs somebody, and when that is
//! over.
//!
//! [`AlertMonitor`] decides, by time and by what is seen: it is pure, and asks nobody. [`AlertChannels`] sends.
//! What is seen comes from the same status as the page's sentence. What always holds: a problem is told when it
//! has lasted for a while, and its end when it has been gone for as long; of each kind, at most one problem is
//! told an hour, and each end belongs to a problem that was told.
//!
//! On failure: a message that cannot be sent is tried again, and goes in order with later ones.

mod channels;
mod email;
mod message;
mod monitor;

pub(crate) use channels::{AlertChannels, ChannelReport};
pub(crate) use message::AlertMessage;
pub(crate) use monitor::{AlertMonitor, Sight, Sights};

use serde::{Deserialize, Serialize};

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AlertKind {
    /// The oldest change that waits is older than `control.lag_limit`, or the site's database does not answer
    /// for as long.
    Lag,
    /// The cloud refuses the key.
    KeyRefused,
    /// Rows are in quarantine.
    Quarantine,
    /// Capture is not in place: changes may wait or be missed.
    Drift,
    /// The outbox's disk is soon full.
    Disk,
    /// Files that rows name are not in the media folder.
    FileMissing,
    /// Files cannot be sent.
    FileFailing,
}

impl AlertKind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Lag,
        Self::KeyRefused,
        Self::Quarantine,
        Self::Drift,
        Self::Disk,
        Self::FileMissing,
        Self::FileFailing,
    ];

    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lag => "lag",
            Self::KeyRefused => "key_refused",
            Self::Quarantine => "quarantine",
            Self::Drift => "drift",
            Self::Disk => "disk",
            Self::FileMissing => "file_missing",
            Self::FileFailing => "file_failing",
        }
    }

    /// What it is, in a few words.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Lag => "changes wait for too long",
            Self::KeyRefused => "the cloud refuses the key",
            Self::Quarantine => "rows are in quarantine",
            Self::Drift => "capture is not in place",
            Self::Disk => "the outbox's disk is soon full",
            Self::FileMissing => "files are missing",
            Self::FileFailing => "files cannot be sent",
        }
    }

    /// How many times as long as others it must last, and be gone: a forecast jumps.
    pub(crate) fn patience(self) -> i32 {
        match self {
            Self::Disk => 5,
            _ => 1,
        }
    }

    /// The command that tells more.
    pub(crate) fn next(self) -> &'static str {
        match self {
            Self::Lag | Self::Drift | Self::KeyRefused => "cloud-sync check",
            Self::Quarantine => "cloud-sync quarantine list",
            Self::Disk => "cloud-sync status",
            Self::FileMissing | Self::FileFailing => "cloud-sync files list",
        }
    }
}
