//! The site's database: we install capture in it, read touches and rows from it, and never block its writers.
//!
//! [`connect`] holds the sessions. [`describe`] knows the tables, [`column_type`] how each column is read,
//! [`fit`] whether the catalogue fits them. [`capture`] writes the SQL of the triggers, [`install`] creates
//! and drops them, [`drift`] notices what escapes them. [`identity`] says whose outbox it is, [`leader_lock`]
//! and [`term`] who drains it. [`wake`] sleeps until a commit, [`outbox`] reads windows of touches and gives
//! space back, [`rows`] reads the present state of touched rows, by a [`projection`] and the codec of
//! [`crate::wire::column_values`]. [`parked_touches`] keeps the touches of entities that cannot flow, [`pauses`]
//! what an operator has paused.
//! [`touch`] touches rows again, [`sent`] remembers what some servers have, [`pages`] reads whole tables.
//! [`quarantine`], [`file_records`] (read for people by [`file_list`]; [`file_state`] has the states,
//! [`kept_files`] asks for them again), [`upload_state`], [`traffic`] and [`backfill_progress`] keep what
//! [`crate::quarantine`], [`crate::media`] and [`crate::reconcile`] decide, [`schema_check`] finds what is
//! missing. [`overview`] is what the page shows of all that.
//!
//! Each statement on schema `cloud_sync` is in a file under `sql/source`, by a name, and only this folder
//! sends them. Long-lived sessions are tokio-postgres; migrations and the pool for short questions are sqlx.

pub(crate) mod backfill_progress;
pub mod capture;
pub mod column_type;
pub(crate) mod complete;
pub(crate) mod condition;
pub mod connect;
pub mod describe;
pub mod drift;
pub mod file_list;
pub mod file_records;
pub mod file_state;
pub(crate) mod fit;
pub mod identity;
pub mod install;
pub(crate) mod kept_files;
pub mod leader_lock;
pub mod outbox;
pub mod overview;
pub mod pages;
pub(crate) mod parked_touches;
pub mod pauses;
pub(crate) mod projection;
pub mod quarantine;
pub(crate) mod row_facts;
pub(crate) mod rows;
pub(crate) mod schema_check;
pub mod schema_version;
pub mod sent;
pub mod site_session;
pub mod term;
mod text_parameter;
pub mod touch;
pub(crate) mod traffic;
pub(crate) mod upload_state;
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

/// The SQL expression of a value's text as its type's output function writes it; null for null. A row of
/// nulls is no null.
fn output(value: &str) -> String {
    format!("case when {value} is distinct from null then pg_catalog.format('%s', {value}) end")
}
