//! A cloud server as the contract describes it: the four baseline calls, and `bulk` and `delete` where it is
//! told to. It is [`Cloud`] with the contract's habits:
//!
//! ```ignore
//! let cloud = Baseline::start(&catalogue, &["delete"]).await;
//! cloud.fault(Fault::status(503).retry_after("1").on("rooms").when(|row| row["room_id"] == 3).times(2));
//! …
//! assert_eq!(cloud.rows("rooms").len(), 5);
//! ```

#[allow(unused_imports, reason = "each test file uses its own part")]
pub(crate) use super::clouds::File;
pub(crate) use super::clouds::{Cloud as Baseline, KEY};
pub(crate) use super::fault::Fault;
