//! The outbox while the cloud is away for days, and after.
