//! Files: their upload, where they are on disk, and their delivery to a browser.

pub(crate) mod file_writer;
pub(crate) mod group_commit;
pub(crate) mod media;
pub(crate) mod multipart;
pub(crate) mod signed_url;
pub(crate) mod tus;
pub(crate) mod upload;
