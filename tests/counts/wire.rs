//! What goes over the line to the cloud.

use cloud_sync::deliver::{Cloud, CloudOptions};
use secrecy::SecretString;

use super::{Metered, rooms};
use crate::support::counting_proxy::Count;
use crate::support::site::KEY;

const ROWS: u64 = 10_000;

/// The bytes of a batch in these tests.
const BATCH: u64 = 512 * 1024;

/// What a change counts in a batch without its key and its row.
const RECKONED: u64 = 64;

/// Further batches at the beginning, which are smaller: how large a row is, is learnt from the ones before.
const LEARNING: u64 = 2;

/// Bytes of a change without its key and its row: `{"position":`, mostly four digits, `,"entity":"rooms"`,
/// `,"op":"upsert"`, `,"key":`, `,"row":`, `}` and the line's end.
const FRAME: u64 = 63;

/// What the handshake and the schema take, and the heads of the requests.
const HEADS: u64 = 4 * 1024;

/// Bytes of a compressed change, among others as alike as these.
const COMPRESSED: u64 = 8;

/// Delivers 10,000 changes; answers what went over the line, and the bytes of their keys and rows.
async fn deliver(hint: &str, compress: bool) -> (Count, u64) {
    let config = format!("[delivery]\nbatch_rows = 100000\nbatch_bytes = \"{BATCH}\"\n");
    let metered = Metered::start(hint, &config).await;
    rooms(&metered.site, ROWS).await;
    let bytes: i64 = metered
        .site
        .client
        .query_one(
            "select sum(octet_length(json_build_object('room_id', room_id)::text) \
                        + octet_length(row_to_json(r)::text))::bigint from tbl_room r",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    let mut drain = metered.site.drain();
    let options = CloudOptions {
        timeout: metered.site.settings.cloud.timeout,
        in_flight: metered.site.settings.delivery.in_flight,
        compress,
        ..CloudOptions::new(
            metered.site.settings.cloud.url.clone().unwrap(),
            SecretString::from(KEY),
        )
    };
    drain.cloud = Cloud::new(options, drain.catalogue.clone()).unwrap();
    drain.drain_all().await.unwrap();
    metered.site.assert_equal(&metered.cloud).await;
    (metered.line.all(), bytes as u64)
}

#[tokio::test]
async fn changes_fill_their_requests_and_carry_little_beside_their_rows() {
    let (line, bytes) = deliver("line", false).await;
    assert!(
        0 < line.deliveries && line.deliveries <= (bytes + ROWS * RECKONED).div_ceil(BATCH) + LEARNING,
        "{line:?} for {bytes} bytes"
    );
    assert_eq!(line.connections, 1, "{line:?}");
    assert!(bytes <= line.bytes, "{line:?} for {bytes} bytes");
    assert!(
        line.bytes <= bytes + ROWS * FRAME + HEADS,
        "{line:?} for {bytes} bytes"
    );
}

#[tokio::test]
async fn compressed_changes_take_a_fraction() {
    let (line, _) = deliver("compressed", true).await;
    assert!(
        0 < line.bytes && line.bytes <= ROWS * COMPRESSED + HEADS,
        "{line:?}"
    );
    assert_eq!(line.connections, 1, "{line:?}");
}
