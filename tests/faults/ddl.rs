//! The site's tables change while the replicator runs.
