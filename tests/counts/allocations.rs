//! What a change costs in memory that is asked for: with a counting allocator, which counts by thread.
//!
//! The drain runs on one thread here, and the receiver in a process of its own. What is the same for any
//! number of changes falls out, as only the further changes of a longer backlog count.

use crate::support::receiver::ReceiverProcess;
use crate::support::site::{Cloud, KEY, Site};

use super::rooms;

/// A short backlog, and the further changes of the long one.
const FEW: u64 = 1000;
const MORE: u64 = 10_000;

/// Allocations a change: where the columns of the touch and of the row lie, the row's JSON, and its key's.
/// The rest is the touches by key, and the batch's.
const ALLOCATIONS: f64 = 4.5;

/// Bytes that they ask for, a change: its row of 220 bytes, and once more in the request; the rest is the
/// touches by key, and the rows as they come.
const BYTES: f64 = 2500.0;

#[test]
fn a_further_change_takes_a_few_allocations() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (site, _receiver, _cloud) = runtime.block_on(async {
        let mut cloud = Cloud::start("allocations").await;
        let receiver = ReceiverProcess::replace(&mut cloud, &[KEY]).await;
        let site = Site::school("allocations", &cloud.url, KEY).await;
        (site, receiver, cloud)
    });
    let drain = site.drain();
    let delivered = |rows| {
        runtime.block_on(rooms(&site, rows));
        allocation_counter::measure(|| runtime.block_on(drain.drain_all()).unwrap())
    };
    delivered(FEW);
    let (few, many) = (delivered(FEW), delivered(FEW + MORE));
    assert_eq!(drain.state.metrics.accepted_total(), 3 * FEW + MORE);
    let a_change = |few: u64, many: u64| many.saturating_sub(few) as f64 / MORE as f64;
    let allocations = a_change(few.count_total, many.count_total);
    let bytes = a_change(few.bytes_total, many.bytes_total);
    assert!(
        0.0 < allocations && allocations <= ALLOCATIONS,
        "{allocations} a change"
    );
    assert!(0.0 < bytes && bytes <= BYTES, "{bytes} a change");
}
