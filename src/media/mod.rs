//! The file lane: each file that a row names is uploaded once, and the row gets its URL.
//!
//! Invariants: a row never waits for a file; a file counts as uploaded when the cloud has confirmed its
//! content hash (a server without hashes: when it has accepted it); then, in one transaction, the URL is
//! written down and the rows that name the file are touched again, so that the URL travels the same road as
//! any change. A file that grows, is empty or missing is tried again, and never sent by halves.
//!
//! Flow: [`urls`] adds to each row on its way the URLs that are known, and notes which rows name which files;
//! [`records`] keeps that in the source database; [`watch`] sees files come and change; [`upload`] brings
//! them to the cloud.

mod paths;
pub mod records;
pub mod upload;
mod upload_pool;
mod urls;
mod watch;

pub(crate) use paths::NamedFile;
pub use urls::{FileReferences, attach_urls, note_references};
