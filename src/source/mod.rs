//! The site's database: capture is installed in it, changes are read from it, and nothing in it is ever blocked.
//!
//! [`connect`] holds the sessions, [`describe`] knows the tables, [`image`] writes the SQL of a row's image
//! and [`capture`] that of the triggers, [`install`] puts them in place and takes them away, [`guard`] notices what escapes
//! them, [`identity`] says whose outbox it is, [`wake`] sleeps until a commit, [`outbox`] reads windows and trims, [`packed`] makes the JSON of rows that were captured as PostgreSQL sends them, [`recapture`] captures rows anew, [`backfill`] reads what stood before.
//!
//! Long-lived sessions are tokio-postgres; migrations and the pool for short questions are sqlx.

pub mod backfill;
pub mod capture;
pub mod connect;
pub mod describe;
pub mod guard;
pub mod identity;
pub mod image;
pub mod install;
pub(crate) mod key;
pub mod outbox;
pub(crate) mod packed;
pub mod recapture;
pub mod wake;

/// Quotes a name for SQL.
pub fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text for SQL.
pub fn quote_text(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// An SQL array of texts.
pub(crate) fn text_array<S: AsRef<str>>(texts: &[S]) -> String {
    let quoted: Vec<_> = texts.iter().map(|text| quote_text(text.as_ref())).collect();
    format!("array[{}]::text[]", quoted.join(", "))
}
