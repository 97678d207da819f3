//! The demo: a whole site with its cloud on one machine, live, and the proof that both hold the same data.
//!
//! [`run_demo`] starts the parts and connects them. Each part can be used without the others:
//!
//! - [`postgres`] runs a private PostgreSQL server, which never outlives this program;
//! - [`school`] creates the sample school in an empty database: the rows of nine tables (`rows`, `campus`,
//!   `people`, `slips`) and the files that they name (`media_files`);
//! - [`traffic`] then writes to it as cameras, teachers and the registrar do, until shutdown;
//! - [`equality`] compares the site with the cloud, row by row and file by file.
//!
//! The files are valid JPEG and MP4 files, and no two are equal. `pictures` and `recording` make them from a
//! few short files that are part of the program.
//!
//! If a part fails, the demo stops the other parts and the private server, and returns the error.

mod campus;
pub mod equality;
mod live;
mod media_files;
mod people;
mod pictures;
pub mod postgres;
mod recording;
mod rows;
pub mod school;
mod school_size;
mod slips;
pub mod traffic;

pub use live::{DemoOptions, DemoReport, run_demo};
