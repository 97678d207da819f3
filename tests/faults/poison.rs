//! Rows that the cloud refuses, and how they leave quarantine.
