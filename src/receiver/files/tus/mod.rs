//! Resumable uploads: tus 1.0.0 at `/files`, with creation, creation-with-upload, checksum, termination and
//! expiration.
//!
//! Always holds:
//! - Any receiver can continue an upload: its state is a row ([`record`]), and its bytes are a file in the
//!   shared folder of unfinished files ([`partial_file`]). Both belong to the site that began it.
//! - A byte counts once it is synced and then noted in the row. The offset is the lesser of the row's and the
//!   file's length; what lies beyond it in the file is cut off before more is written.
//! - One request at a time changes an upload: the one that has the file's lock. A lock on the file needs no
//!   database connection while a body arrives, covers all receivers that share the folder, and ends with the
//!   process that holds it. The folder's file system must carry `flock` to all of them; where it does not,
//!   the row is still written only by the request that has seen its last state, and the content's hash
//!   decides what becomes visible.
//! - A file becomes visible when it is whole and has the announced hash, through the same group commit as
//!   `POST /upload`.
//!
//! A request travels: [`routes`] (headers) -> [`receive`] (the body goes to the file) -> [`finish`] (the
//! whole file gets its name). The work is a task of its own, so that an interrupted request still notes what
//! has arrived. A `HEAD` comes from a client that wants to continue: it ends the request that writes, whose
//! connection may be dead. [`sweep`] removes what has expired.

pub(crate) mod active;
mod finish;
mod partial_file;
mod receive;
mod record;
mod request;
pub(crate) mod routes;
pub(crate) mod sweep;

use std::time::Duration;

/// An unfinished upload is removed after this time without progress.
pub(crate) const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);
