//! The numbers of batches: contiguous in a term; and which of them may be sent before the one before is
//! answered: see [`super::in_flight`].

use std::sync::Arc;

use tokio::sync::watch;

use super::in_flight::Pipeline;

/// The numbers under which batches are sent to a cloud that orders them: contiguous in a term.
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
    /// What is in flight; `None` if the cloud would take batches in any order.
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

    /// Shows after which batch others may be sent now; `None` if that is never so.
    pub fn watch(&self) -> Option<watch::Receiver<Option<i64>>> {
        self.pipeline.as_ref().map(|pipeline| pipeline.watch())
    }

    /// Whether anything was sent under a higher number than the next one.
    pub fn sent_after_next(&self) -> bool {
        self.has_sent_after(self.next)
    }

    /// Whether anything was sent under a higher number than the last one that was taken.
    pub fn sent_after_last_taken(&self) -> bool {
        self.has_sent_after(self.next - 1)
    }

    fn has_sent_after(&self, number: i64) -> bool {
        self.pipeline
            .as_ref()
            .is_some_and(|pipeline| pipeline.has_sent_after(number))
    }

    /// Notes what was sent under the next number while the one before it was in flight.
    pub fn note_sent_early(&mut self, hash: blake3::Hash) {
        self.sent = Some((self.next, hash));
    }

    /// Claims the next number for a body with this hash. Returns whether it may be sent under it: another body
    /// that was sent under the number may have been taken.
    pub(super) fn claim(&mut self, hash: blake3::Hash) -> bool {
        let may_be_sent = self
            .sent
            .is_none_or(|(number, sent)| number != self.next || sent == hash);
        if may_be_sent {
            self.sent = Some((self.next, hash));
        }
        may_be_sent
    }

    /// Notes that the cloud does not take what was sent under the next number: other changes may be sent
    /// under it.
    pub(super) fn refused(&mut self) {
        self.sent = None;
    }

    /// Notes that the cloud has taken the next number.
    pub(super) fn note_taken(&mut self) {
        self.next += 1;
        self.previous_nonce = None;
    }
}
