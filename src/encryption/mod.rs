//! Encryption of columns before they leave the site: who has the cloud, its backups or its logs cannot read them.
//!
//! A key file on the site ([`key_file`]) holds the site's keys: the newest encrypts, the older ones still decrypt.
//! [`column_cipher`] makes of each value a text, and of each such text the value. It happens where a row's JSON is
//! built ([`crate::source::projection`]), so a row that was touched, one that a sync compares and one that a
//! backfill sends have the same text.
//!
//! Always holds: a column that is to be encrypted never leaves as it is. Where there is no key, its rows are not
//! sent. A value that is the same in the same row has the same text, as long as the key is the same: a comparison
//! with the cloud finds no difference.

pub(crate) mod column_cipher;
pub(crate) mod key_file;
