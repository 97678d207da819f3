//! Random schedules of concurrent transactions, drained at random moments, compared with a model.
