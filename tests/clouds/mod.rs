//! Cloud servers that sites have: what the one for tests does by its switches, whether the program serves
//! each of them, and the smallest ones in `examples/servers`.

mod answers;
mod college;
mod conformance;
mod habits;
mod lists;
mod smallest;

use cloud_sync::catalogue::Catalogue;
use cloud_sync::control::{SyncReport, SyncRequest};
use cloud_sync::reconcile::NoObserver;

use crate::support::baseline::{BaselineServer, KEY, Quirks};
use crate::support::site::{Running, Site};

/// A site whose cloud is a server with these habits, and the server. `cloud` are further lines of `[cloud]`.
async fn connected(
    hint: &str,
    quirks: Quirks,
    cloud: &str,
    tables: &str,
    config: &str,
) -> (Site, BaselineServer) {
    let none = Catalogue::new(Vec::new()).unwrap();
    // What it knows is what the site's configuration names.
    let parsed = Site::bare(&format!("{hint}_0"), "http://127.0.0.1:1/api", KEY, "", config).await;
    let catalogue = parsed.settings.catalogue;
    assert_ne!(catalogue, none);
    let server = BaselineServer::start(&catalogue, quirks).await;
    let mut site = Site::bare(hint, &server.url(), KEY, tables, config).await;
    if !cloud.is_empty() {
        site.reconfigure("timeout = \"5s\"\n", &format!("timeout = \"5s\"\n{cloud}\n"));
    }
    site.init().await;
    (site, server)
}

async fn sync(running: &Running, force: bool) -> SyncReport {
    let request = SyncRequest {
        force,
        ..SyncRequest::default()
    };
    running.replicator.sync(&request, &NoObserver).await.unwrap()
}

/// How many rows a sync pushed.
fn pushed(report: &SyncReport) -> usize {
    report.summary().iter().map(|(_, &count)| count).sum()
}
