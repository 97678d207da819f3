//! The demo: a whole site with its cloud on one machine, live, and the proof that both hold the same.
//!
//! [`run_demo`] puts it together. Its parts, each of which stands alone:
//!
//! - [`postgres`] runs a private PostgreSQL server that never outlives this program;
//! - [`school`] makes the sample school in an empty database: the rows of nine tables (`rows`, `campus`, `people`,
//!   `slips`) and the files that they name (`media_files`);
//! - [`traffic`] goes on from there: cameras, teachers and the registrar at work until shutdown;
//! - [`equality`] compares what the site has with what the cloud holds, row by row and file by file.
//!
//! The files are valid JPEG and MP4 files, each different from the others: `pictures` and `recording` make them from a
//! few short ones that are part of the program.

mod campus;
pub mod equality;
mod live;
mod media_files;
mod people;
mod pictures;
mod plan;
pub mod postgres;
mod recording;
mod rows;
pub mod school;
mod slips;
pub mod traffic;

pub use live::{DemoOptions, DemoReport, run_demo};
