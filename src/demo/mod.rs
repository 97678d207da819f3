//! The demo: a whole site with its cloud on one machine, live, and the proof that both hold the same.
//!
//! [`run_demo`] puts it together. Its parts, each of which stands alone:
//!
//! - [`postgres`] runs a private PostgreSQL server that never outlives this program;
//! - [`school`] makes the sample school in an empty database: the rows of nine tables (`rows`, `campus`, `people`,
//!   `slips`) and the files that they name, drawn on all processors (`studio`);
//! - [`traffic`] goes on from there: cameras, teachers and the registrar at work until shutdown;
//! - [`equality`] compares what the site has with what the cloud holds, row by row and file by file.
//!
//! The files are real ones: `pictures` draws portraits and scanned slips, `video` a corridor with someone in it, both
//! on a `canvas` with a bitmap `font`; `mp4` is the container that grows while a camera records.

mod campus;
mod canvas;
pub mod equality;
mod font;
mod live;
mod mp4;
mod people;
mod pictures;
mod plan;
pub mod postgres;
mod rows;
pub mod school;
mod slips;
mod studio;
pub mod traffic;
mod video;

pub use live::{DemoOptions, DemoReport, run_demo};
