//! TLS between the replicator and its cloud: certificates that are wrong in every way, and one that is right.

use std::net::SocketAddr;
use std::path::Path;

use super::{rooms, why};
use crate::support::oracle::Tally;
use crate::support::site::{Cloud, KEY, Site};
use crate::support::tls::{Authority, HTTP_1, authority, terminate};

/// A site whose cloud is at this host and port, and which trusts the authority.
async fn site(hint: &str, host: &str, address: SocketAddr, authority: Option<&Authority>) -> Site {
    let url = format!("https://{host}:{}/api", address.port());
    let mut site = Site::school(hint, &url, KEY).await;
    let path = site.folder.path().join("ca.pem");
    if let Some(authority) = authority {
        std::fs::write(&path, authority.pem()).unwrap();
        site.settings.cloud.ca_file = Some(path);
    }
    site
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told_with_its_remedy_and_nothing_is_sent() {
    let cloud = Cloud::start("wrong_tls").await;
    let (ours, other) = (authority("ours"), authority("other"));
    let mut tally = Tally::default();
    for (hint, signer, names, years, cause, remedy) in [
        (
            "tls_name",
            &ours,
            ["cloud.example"],
            (2020, 2090),
            "not valid for",
            "set cloud.url to a host name",
        ),
        (
            "tls_old",
            &ours,
            ["localhost"],
            (2001, 2002),
            "xpired",
            "renew the certificate",
        ),
        (
            "tls_early",
            &ours,
            ["localhost"],
            (2089, 2090),
            "not valid yet",
            "check this machine's clock",
        ),
        (
            "tls_issuer",
            &other,
            ["localhost"],
            (2020, 2090),
            "its issuer is not known here",
            "cloud.ca_file",
        ),
    ] {
        let (address, _serving) = terminate(cloud.address(), signer, &names, years, HTTP_1).await;
        let site = site(hint, "localhost", address, Some(&ours)).await;
        let replicator = site.replicate();
        rooms(&site, 1, 3).await;
        let reason = why(&replicator).await;
        println!("{reason}");
        let (cause_text, remedy_text) = reason.split_once("; ").expect("a remedy");
        assert!(cause_text.contains(cause), "{reason}");
        assert!(remedy_text.contains(remedy), "{reason}");
        replicator.end().await;
        tally.faults += 1;
    }
    // A port that does not speak TLS
    let site = site("tls_plain", "localhost", cloud.address(), Some(&ours)).await;
    let replicator = site.replicate();
    let reason = why(&replicator).await;
    assert!(
        reason.contains("no TLS with the cloud") && reason.contains("speaks TLS"),
        "{reason}"
    );
    replicator.end().await;
    tally.faults += 1;
    let report = site.compare(&cloud).await;
    assert!(
        report.entities.iter().all(|entity| entity.cloud_rows == 0),
        "{report}"
    );
}

#[tokio::test]
async fn a_private_authority_that_is_named_in_the_configuration_is_trusted() {
    let cloud = Cloud::start("right_tls").await;
    let ours = authority("ours");
    let (address, _serving) = terminate(cloud.address(), &ours, &["localhost"], (2020, 2090), HTTP_1).await;
    let site = site("right_tls", "localhost", address, Some(&ours)).await;
    assert!(site.settings.cloud.ca_file.as_deref().is_some_and(Path::exists));
    let replicator = site.replicate();
    rooms(&site, 1, 50).await;
    replicator.caught_up().await;
    replicator.end().await;
    Tally::default().judge(&site, &cloud).await;
}
