//! The bounds of the contract.

/// Terms are below this number.
pub const TERM_BOUND: i64 = 1 << 23;

/// The numbers of a term's batches are below this number.
pub const BATCH_BOUND: i64 = 1 << 40;

/// How many batches of a source may be in flight at once. The receiver keeps the answers of so many, and a
/// batch that is ahead by less than this waits there for its turn.
pub const MAX_IN_FLIGHT: i64 = 8;

/// Lines of one `POST /changes`, at most: each takes memory beyond its bytes.
pub const MAX_LINES: usize = 200_000;

/// Characters of a nonce, at most.
pub const MAX_NONCE_CHARS: usize = 64;

/// Bytes of a source's id, at most.
pub const MAX_SOURCE_ID_BYTES: usize = 200;

/// Characters of a source's database, at most.
pub const MAX_DATABASE_CHARS: usize = 200;

/// Bytes of an entity's path, at most.
pub const MAX_PATH_BYTES: usize = 200;

/// Bytes of an entity's or a column's name, at most: PostgreSQL cuts longer names, which would make two names
/// one.
pub const MAX_NAME_BYTES: usize = 63;

/// Columns of an entity, at most: PostgreSQL's own bound of 1600 less the receiver's three.
pub const MAX_COLUMNS: usize = 1597;
