//! The rows of the table: each file measures those of one kind.

mod backlog;
mod baseline;
mod bulk;
mod capture;
mod entities;
mod files;
mod idle;
mod latency;
mod link;
mod million;
mod shapes;
mod writers;

use std::path::Path;

use crate::Outcome;
use crate::progress::Progress;
use crate::servers::World;
use crate::table::Row;

/// Something that can be measured alone.
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Whether it is measured although nobody named it.
    pub(crate) always: bool,
}

const fn always(name: &'static str, about: &'static str) -> Measurement {
    Measurement {
        name,
        about,
        always: true,
    }
}

const fn named(name: &'static str, about: &'static str) -> Measurement {
    Measurement {
        name,
        about,
        always: false,
    }
}

/// In the order of the table.
pub(crate) const ROWS: [Measurement; 16] = [
    always(
        "capture",
        "8 writers, one-row inserts, with capture and without; PgQ and a slot",
    ),
    always(
        "draining",
        "the same while the replicator drains; logical replication",
    ),
    always("bulk", "a 300,000-row insert, with capture and without"),
    always(
        "apply",
        "the same, from its commit until all rows are visible in the cloud",
    ),
    always(
        "backlog",
        "100,000 one-row transactions of backlog: time, CPU and memory by process",
    ),
    always(
        "link",
        "the same backlog over 5 Mbit/s and 100 ms: time and bytes; logical replication",
    ),
    always(
        "latency",
        "1,000 single commits, each until it is visible; again right after a bulk",
    ),
    always(
        "million",
        "backlogs of 10,000 to 1,000,000 changes: memory, and time as it grows",
    ),
    always(
        "idle",
        "CPU, wake-ups and memory of processes that have nothing to do",
    ),
    always(
        "entities",
        "10,000 changes over 100 tables; 500 tables: from a start to the first delivery, and idle",
    ),
    always("file", "one file of 1 GiB"),
    always("s3", "one file of 1 GiB to a server of S3"),
    always("files", "10,000 files of 50 KB to a server of S3"),
    always(
        "baseline",
        "5,000 rows to a server that answers each request after 20 ms",
    ),
    named(
        "writers",
        "1, 8 and 32 clients; insert, update, TPC-B; replicator stopped, idle, draining",
    ),
    named("shapes", "entities, row sizes, one hot row, an open transaction"),
];

/// Measures one of [`ROWS`]. `plot` is the file that `million` draws to.
pub(crate) async fn measure(
    name: &str,
    world: &World,
    plot: Option<&Path>,
    progress: &Progress<'_>,
) -> Outcome<Vec<Row>> {
    match name {
        "capture" => capture::capture(world, progress).await,
        "draining" => capture::draining(world, progress).await,
        "bulk" => bulk::bulk(world, progress).await,
        "apply" => bulk::apply(world, progress).await,
        "backlog" => backlog::backlog(world, progress).await,
        "link" => link::link(world, progress).await,
        "latency" => latency::latency(world, progress).await,
        "million" => million::million(world, plot, progress).await,
        "idle" => idle::idle(world, progress).await,
        "entities" => entities::entities(world, progress).await,
        "file" => files::file(world, progress).await,
        "s3" => files::storage(world, progress).await,
        "files" => files::files(world, progress).await,
        "baseline" => baseline::baseline(world, progress).await,
        "writers" => writers::writers(world, progress).await,
        "shapes" => shapes::shapes(world, progress).await,
        name => Err(format!("nothing measures {name}").into()),
    }
}
