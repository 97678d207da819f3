//! How long a request's text may be.
//!
//! Two things bound it: what the server refuses as too long (413), and what the link can carry before it
//! drops. A link that drops every minute would never see the end of a request that takes longer. So each
//! request that is interrupted halves the bound for the next ones, and each that gets through doubles it
//! again.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::failure::CloudResult;

/// The bound never becomes smaller than this, in bytes.
const SMALLEST_REQUEST: usize = 16 * 1024;

/// The bounds, shared by all requests of a client.
pub(super) struct RequestSizer {
    /// What the server takes, as far as its 413s tell.
    server_limit: AtomicUsize,
    /// What the link carries, as far as interrupted requests tell.
    link_limit: AtomicUsize,
}

impl RequestSizer {
    pub(super) fn new() -> Self {
        Self {
            server_limit: AtomicUsize::new(usize::MAX),
            link_limit: AtomicUsize::new(usize::MAX),
        }
    }

    /// The longest text that a request should have now, in bytes.
    pub(super) fn limit(&self) -> usize {
        let link_limit = self.link_limit.load(Ordering::Relaxed);
        self.server_limit.load(Ordering::Relaxed).min(link_limit)
    }

    /// Notes how a request with this many bytes of text ended.
    pub(super) fn record<T>(&self, bytes: usize, outcome: &CloudResult<T>) {
        let limit = self.link_limit.load(Ordering::Relaxed);
        match outcome {
            Err(failure) if failure.was_interrupted() => {
                let half = (bytes / 2).max(SMALLEST_REQUEST);
                self.link_limit.store(limit.min(half), Ordering::Relaxed);
            }
            // A short one that got through says nothing about a long one.
            Ok(_) if bytes >= limit / 2 => {
                self.link_limit.store(limit.saturating_mul(2), Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Notes that the server found a request with this many bytes of text too long.
    pub(super) fn record_too_long(&self, bytes: usize) {
        let half = (bytes / 2).max(SMALLEST_REQUEST);
        self.server_limit.fetch_min(half, Ordering::Relaxed);
    }
}

/// Splits a list into pieces of at most `limit` bytes, or of one item.
pub(super) fn split_by_bytes<T: Copy>(items: &[T], limit: usize, bytes: impl Fn(T) -> usize) -> Vec<&[T]> {
    let mut pieces = Vec::new();
    let (mut start, mut sum) = (0, 0_usize);
    for (at, &item) in items.iter().enumerate() {
        let more = bytes(item);
        if at > start && sum.saturating_add(more) > limit {
            pieces.push(&items[start..at]);
            (start, sum) = (at, 0);
        }
        sum = sum.saturating_add(more);
    }
    if start < items.len() {
        pieces.push(&items[start..]);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::failure::Failure;

    #[test]
    fn the_limit_follows_the_server_and_the_link() {
        let sizer = RequestSizer::new();
        assert_eq!(sizer.limit(), usize::MAX);
        let interrupted: CloudResult<()> = Err(Failure::unreachable("push", "cut", "wait").interrupted());
        sizer.record(400_000, &interrupted);
        assert_eq!(sizer.limit(), 200_000);
        sizer.record(1000, &Ok(()));
        assert_eq!(sizer.limit(), 200_000, "a short request says nothing");
        sizer.record(150_000, &Ok(()));
        assert_eq!(sizer.limit(), 400_000);
        sizer.record_too_long(100_000);
        assert_eq!(sizer.limit(), 50_000);
        sizer.record_too_long(10);
        assert_eq!(sizer.limit(), SMALLEST_REQUEST);
    }

    #[test]
    fn pieces_are_as_long_as_they_may_be() {
        let pieces = split_by_bytes(&[3, 4, 9, 1, 2], 7, |bytes: usize| bytes);
        assert_eq!(pieces, [&[3, 4][..], &[9], &[1, 2]]);
        assert!(split_by_bytes(&[], 7, |bytes: usize| bytes).is_empty());
    }
}
