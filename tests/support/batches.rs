//! The names of batches, for tests that post to `POST /changes` themselves.

use std::sync::Mutex;

use reqwest::RequestBuilder;

/// The name of a batch: what the headers of its request say.
#[derive(Clone, Debug)]
pub(crate) struct BatchName {
    pub(crate) source: String,
    pub(crate) epoch: i64,
    pub(crate) term: i64,
    pub(crate) batch: i64,
    pub(crate) nonce: String,
    pub(crate) previous: Option<String>,
    pub(crate) database: Option<String>,
}

impl BatchName {
    /// Puts the headers onto a request.
    pub(crate) fn put(&self, request: RequestBuilder) -> RequestBuilder {
        let mut request = request
            .header("X-Source-Id", &self.source)
            .header("X-Epoch", self.epoch)
            .header("X-Term", self.term)
            .header("X-Batch", self.batch)
            .header("X-Term-Nonce", &self.nonce);
        if let Some(previous) = &self.previous {
            request = request.header("X-Previous-Nonce", previous);
        }
        if let Some(database) = &self.database {
            request = request.header("X-Source-Database", database);
        }
        request
    }

    /// The first batch of this term, which follows the term of this name.
    pub(crate) fn first_of_term(&self, term: i64) -> Self {
        Self {
            term,
            batch: 1,
            nonce: format!("nonce-{}-{term}", self.epoch),
            previous: Some(self.nonce.clone()),
            ..self.clone()
        }
    }

    /// The batch that follows in the same term.
    pub(crate) fn next(&self) -> Self {
        self.after(1)
    }

    /// The batch so many numbers later in the same term.
    pub(crate) fn after(&self, batches: i64) -> Self {
        Self {
            batch: self.batch + batches,
            previous: None,
            ..self.clone()
        }
    }
}

/// A source, which names its batches one after another.
pub(crate) struct BatchSource(Mutex<BatchName>);

impl BatchSource {
    /// A source in its first epoch, at the beginning of this term.
    pub(crate) fn at_term(source: &str, term: i64) -> Self {
        Self(Mutex::new(BatchName {
            source: source.to_owned(),
            epoch: 1,
            term,
            batch: 0,
            nonce: format!("nonce-1-{term}"),
            previous: None,
            database: None,
        }))
    }

    pub(crate) fn new(source: &str) -> Self {
        Self::at_term(source, 1)
    }

    /// The newest batch that was taken.
    pub(crate) fn newest(&self) -> BatchName {
        self.0.lock().unwrap().clone()
    }

    /// The batch that follows it.
    pub(crate) fn next(&self) -> BatchName {
        self.newest().next()
    }

    /// The batch that follows it in this epoch: the epoch's first one where it is another.
    pub(crate) fn next_in(&self, epoch: i64) -> BatchName {
        let newest = self.newest();
        if newest.epoch == epoch {
            return newest.next();
        }
        BatchName {
            epoch,
            term: 1,
            batch: 1,
            nonce: format!("nonce-{epoch}-1"),
            previous: None,
            ..newest
        }
    }

    /// Notes that a batch was taken.
    pub(crate) fn taken(&self, batch: BatchName) {
        *self.0.lock().unwrap() = batch;
    }
}
