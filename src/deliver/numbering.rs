//! The numbers of batches: contiguous in a term.

use std::sync::Arc;

use tokio::sync::watch;

use super::in_flight::Pipeline;

/// Under which numbers batches go to a cloud that orders them: contiguous in a term.
#[derive(Debug, Clone)]
pub struct Numbering {
    /// The term.
    pub term: i64,
    /// Its random name.
    pub nonce: String,
    /// The nonce of the term that the cloud has, for the first batch.
    pub previous_nonce: Option<String>,
    /// The number of the next batch.
    pub next: i64,
    /// The number and the body's hash of what was sent last, whether or not it was answered.
    sent: Option<(i64, blake3::Hash)>,
    /// What is in flight; none where the cloud would take batches in any order.
    pub(super) pipeline: Option<Arc<Pipeline>>,
}

impl Numbering {
    /// The numbers of a term, from 1. `previous_nonce` names the term that the cloud has.
    pub fn new(term: i64, nonce: String, previous_nonce: Option<String>) -> Self {
        Self {
            term,
            nonce,
            previous_nonce,
            next: 1,
            sent: None,
            pipeline: None,
        }
    }

    /// The same at a cloud that takes batches in the order of their numbers only: several may be in flight.
    pub fn in_order(mut self) -> Self {
        self.pipeline = Some(Arc::new(Pipeline::new()));
        self
    }

    /// Shows behind which batch others may go now; none where none ever may.
    pub fn watch(&self) -> Option<watch::Receiver<Option<i64>>> {
        self.pipeline.as_ref().map(|pipeline| pipeline.watch())
    }

    /// Whether anything went under a number behind the next one.
    pub fn is_followed(&self) -> bool {
        self.went_behind(self.next)
    }

    /// Whether anything went under a number behind the last one that was taken.
    pub fn was_followed(&self) -> bool {
        self.went_behind(self.next - 1)
    }

    fn went_behind(&self, number: i64) -> bool {
        self.pipeline
            .as_ref()
            .is_some_and(|pipeline| pipeline.went_behind(number))
    }

    /// Notes what went under the next number, and was in flight.
    pub fn note_sent(&mut self, hash: blake3::Hash) {
        self.sent = Some((self.next, hash));
    }

    /// Whether a body with this hash may go under the next number: another one that went under it may have
    /// been taken.
    pub(super) fn admits(&mut self, hash: blake3::Hash) -> bool {
        let admits = self
            .sent
            .is_none_or(|(number, sent)| number != self.next || sent == hash);
        if admits {
            self.sent = Some((self.next, hash));
        }
        admits
    }

    /// The cloud has answered that it does not take what went under the next number: other changes may go
    /// under it.
    pub(super) fn refused(&mut self) {
        self.sent = None;
    }

    pub(super) fn accepted(&mut self) {
        self.next += 1;
        self.previous_nonce = None;
    }
}
