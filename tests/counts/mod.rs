//! What the work costs, counted and never timed: statements, round trips, requests, bytes, notifications,
//! allocations.
//!
//! Each bound is what the work takes now, with its parts. Whoever makes it leaner lowers
//! the bound; what makes a count depend on the number of rows breaks it at once.

mod allocations;
mod idle;
mod notify;
mod statements;
mod wire;

use crate::support::counting_proxy::CountingProxy;
use crate::support::postgres::Server;
use crate::support::site::{Cloud, KEY, SCHOOL, Site};

/// A school and its cloud with a counting_proxy on each line.
struct Metered {
    site: Site,
    cloud: Cloud,
    /// Between the replicator and the site's database.
    source: CountingProxy,
    /// Between the replicator and the receiver.
    line: CountingProxy,
    /// Between the receiver and its database.
    target: CountingProxy,
}

impl Metered {
    async fn start(hint: &str, config: &str) -> Self {
        Self::start_on(Server::get(), hint, config).await
    }

    /// With both databases on this server.
    async fn start_on(server: &Server, hint: &str, config: &str) -> Self {
        let mut cloud = Cloud::start_on(server, hint).await;
        let (target, through) = CountingProxy::before(&cloud.database_url).await;
        cloud.away().await;
        cloud.set_database(through);
        cloud.back().await;
        let (line, cloud_url) = CountingProxy::before(&cloud.url).await;
        let database = server.database(&format!("{hint}_site")).await;
        let (source, through) = CountingProxy::before(&database).await;
        let site = Site::at(through, &cloud_url, KEY, SCHOOL, config).await;
        site.init().await;
        Self {
            site,
            cloud,
            source,
            line,
            target,
        }
    }
}

/// Captures so many new rooms, in one statement.
async fn rooms(site: &Site, rows: u64) {
    site.run(&format!(
        "insert into tbl_room (room_no, room_name, room_building_no) \
         select 'R' || n, 'room ' || n, 'building ' || n % 7 \
         from (select coalesce(max(room_id), 0) as last from tbl_room) known, \
         generate_series(known.last + 1, known.last + {rows}) n"
    ))
    .await;
}
