//! The wire contract's versions of rows, and the headers of `POST /changes` that carry them.
//!
//! A batch is named by (epoch, term, batch): the life of the site's outbox, the term in it, and the batch's number in the
//! term, counted from 1. The version of all its rows is `term * 2^40 + batch`, within the epoch.

/// The source that sends the batch.
pub const SOURCE_ID: &str = "x-source-id";
/// The epoch, from 1.
pub const EPOCH: &str = "x-epoch";
/// The term, from 1, below [`TERMS`].
pub const TERM: &str = "x-term";
/// The batch's number in its term, from 1, below [`BATCHES`].
pub const BATCH: &str = "x-batch";
/// The random text of the term: 1 to [`NONCE`] visible ASCII characters.
pub const TERM_NONCE: &str = "x-term-nonce";
/// The nonce of the term that the receiver has now: the first batch of a later term must know it.
pub const PREVIOUS_NONCE: &str = "x-previous-nonce";
/// Which database the source is: at most [`DATABASE`] characters.
pub const SOURCE_DATABASE: &str = "x-source-database";

/// Terms are below this number.
pub const TERMS: i64 = 1 << 23;
/// Batches of a term are below this number.
pub const BATCHES: i64 = 1 << 40;
/// Batches of a source that may be on their way at once: of so many the receiver keeps the answers, and so far ahead a batch
/// waits there for its turn.
pub const IN_FLIGHT: i64 = 8;
/// Characters of a nonce, at most.
pub const NONCE: usize = 64;
/// Characters of a source's database, at most.
pub const DATABASE: usize = 200;

/// The version of the rows of a batch, within its epoch.
pub const fn version(term: i64, batch: i64) -> i64 {
    term * BATCHES + batch
}

/// Why a batch is not taken: the member `code` of a 409.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnCode {
    /// The batch is not the one that follows the newest.
    OutOfTurn,
    /// The epoch is over.
    StaleEpoch,
    /// The term is over.
    StaleTerm,
    /// The sender does not know the term's nonce: it may be a copy of the machine that does.
    UnknownTerm,
    /// The number of a batch that was taken, with another body.
    DifferentBatch,
}

impl TurnCode {
    const ALL: [Self; 5] = [
        Self::OutOfTurn,
        Self::StaleEpoch,
        Self::StaleTerm,
        Self::UnknownTerm,
        Self::DifferentBatch,
    ];

    /// The code of this text; none where it is another one.
    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

    /// The code on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OutOfTurn => "out-of-turn",
            Self::StaleEpoch => "stale-epoch",
            Self::StaleTerm => "stale-term",
            Self::UnknownTerm => "unknown-term",
            Self::DifferentBatch => "different-batch",
        }
    }
}

/// The code of a 409 to `PUT /schema/{path}`: the entity belongs to another source of the site.
pub const OTHER_SOURCE: &str = "other-source";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_go_up_with_the_term_then_with_the_batch() {
        assert!(version(1, 2) > version(1, 1));
        assert!(version(2, 1) > version(1, BATCHES - 1));
        assert!(version(TERMS - 1, BATCHES - 1) > 0);
    }
}
