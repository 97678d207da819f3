//! `cloud-sync` carries each change of a site's PostgreSQL database, and each media file that its rows name,
//! to the site's cloud within moments of the commit, and proves that nothing was lost.
//!
//! # As a library
//!
//! [`CloudSync::builder`] says where the site and its cloud are, and of which [`Entity`] each table is.
//! [`CloudSync::start`] replicates until its [`RunHandle`] is stopped; the handle has a [`StatusReport`] and a
//! stream of [`SyncEvent`]s. [`CloudSync::sync_all`] compares site and cloud once and returns a [`SyncReport`]. A
//! [`Receiver`] is the reference cloud server. What fails is an [`Error`]. The folder `examples` has a program
//! for each.
//!
//! ```no_run
//! use cloud_sync::CloudSync;
//!
//! # async fn example() -> Result<(), cloud_sync::Error> {
//! let site = CloudSync::builder()
//!     .database_url("postgresql://replicator@localhost/school")
//!     .cloud("https://cloud.example/api", "the-key-of-the-site")
//!     .set("catalogue.tables", "public.*")
//!     .build()?;
//! site.install().await?;
//! let report = site.sync_all().await?;
//! assert!(report.success());
//! # Ok(())
//! # }
//! ```
//!
//! Everything else is the program's inside, hidden from the documentation; it may change in any version.
//!
//! # The inside
//!
//! The map, in the order in which a change travels:
//!
//! 1. A trigger writes the row's key to the outbox, a touch, in the writer's own transaction. [`source`]
//!    installs that, is woken by it, reads touches by window (what became visible between two transaction
//!    snapshots), and then the present state of their rows.
//! 2. [`batch`] holds the states, each row once.
//! 3. [`media`] adds the URLs of uploaded files.
//! 4. [`deliver`] speaks to the cloud; [`wire`] is the contract between the two. What the cloud refuses for
//!    good goes to [`quarantine`].
//! 5. [`checkpoint`] keeps how far the cloud has accepted; then [`source`] trims the outbox.
//!
//! [`drain`] drives all of that in four stages: read, prepare, send, record. [`reconcile`] compares with what
//! the cloud holds ([`existence`]), finds what is missing in the cloud and touches it again, so that it goes
//! the same road. [`replicator`] builds, starts and joins the tasks; [`control`] and [`cli`] are how people
//! see and steer it. [`receiver`] is the reference cloud server, [`demo`] a whole site with its cloud.

pub use catalogue::Entity;
pub use control::status::StatusReport;
pub use embed::{CloudSync, CloudSyncBuilder, RunHandle, SyncEvent};
pub use error::{Error, Result};
pub use receiver::{Receiver, ReceiverSettings};
pub use reconcile::report::SyncReport;

#[doc(hidden)]
pub use catalogue::Catalogue;
#[doc(hidden)]
pub use config::{Settings, SettingsBuilder};
#[doc(hidden)]
pub use control::SyncRequest;
#[doc(hidden)]
pub use replicator::Replicator;

#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod demo;
mod embed;

#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod replicator;

mod alerts;
mod setup;

#[doc(hidden)]
pub mod drain;
#[doc(hidden)]
pub mod reconcile;
#[doc(hidden)]
pub mod schedule;

#[doc(hidden)]
pub mod existence;
#[doc(hidden)]
pub mod media;
#[doc(hidden)]
pub mod quarantine;
#[doc(hidden)]
pub mod receiver;

#[doc(hidden)]
pub mod batch;
#[doc(hidden)]
pub mod checkpoint;
#[doc(hidden)]
pub mod deliver;
#[doc(hidden)]
pub mod source;

#[doc(hidden)]
pub mod config;

#[doc(hidden)]
pub mod abort;
#[doc(hidden)]
pub mod catalogue;
#[doc(hidden)]
pub mod change;
mod encryption;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod latency;
mod liveness;
#[doc(hidden)]
pub mod metrics;
mod redact;
#[doc(hidden)]
pub mod retry;
mod serve;
#[doc(hidden)]
pub mod shutdown;
mod sql_template;
mod supervise;
mod weekly_times;
#[doc(hidden)]
pub mod wire;
