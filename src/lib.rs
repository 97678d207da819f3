//! `cloud-sync` carries each change of a site's PostgreSQL database, and each media file that its rows name,
//! to the site's cloud within moments of the commit, and proves that nothing was lost.
//!
//! The map, in the order in which a change travels:
//!
//! 1. A trigger writes the row's key to the outbox, a touch, in the writer's own transaction. [`source`]
//!    installs that, is woken by it, reads touches by window (what became visible between two transaction
//!    snapshots), and then the present state of their rows.
//! 2. [`batch`] holds the states, each row once.
//! 3. [`existence`] knows what the cloud already holds; [`media`] adds the URLs of uploaded files.
//! 4. [`deliver`] speaks to the cloud; [`wire`] is the contract between the two. What the cloud refuses for good
//!    goes to [`quarantine`].
//! 5. [`checkpoint`] keeps how far the cloud has accepted; then [`source`] trims the outbox.
//!
//! [`drain`] drives all of that, one step at a time; [`reconcile`] finds what is missing in the cloud and
//! captures it anew, so that it travels the same road; [`replicator`] builds, starts and joins the tasks;
//! [`control`] and [`cli`] are how people see and steer it. [`receiver`] is the reference cloud server,
//! [`demo`] a whole site with its cloud.

pub mod cli;
pub mod demo;

pub mod control;
pub mod replicator;

pub mod drain;
pub mod reconcile;
pub mod schedule;

pub mod existence;
pub mod media;
pub mod quarantine;
pub mod receiver;

pub mod batch;
pub mod checkpoint;
pub mod deliver;
pub mod source;

pub mod config;

#[doc(hidden)]
pub mod abort;
pub mod catalogue;
pub mod change;
pub mod error;
pub mod latency;
pub mod metrics;
mod redact;
pub mod retry;
mod serve;
pub mod shutdown;
mod supervise;
pub mod wire;
