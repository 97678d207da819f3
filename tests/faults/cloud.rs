//! Faults on the way to the cloud and in it.
