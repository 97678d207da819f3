//! TLS between the replicator and its cloud: certificates that are wrong in every way, and one that is right.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::{rooms, why};
use crate::support::oracle::Tally;
use crate::support::site::{Cloud, KEY, Site, provider};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A certificate authority of this name.
fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A TLS server on a port of its own before `target`, with a certificate of these names, from one year to another.
async fn terminate(
    target: SocketAddr,
    authority: &Authority,
    names: &[&str],
    years: (i32, i32),
) -> (SocketAddr, AbortOnDropHandle<()>) {
    provider();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut here) = acceptor.accept(stream).await else {
                    return;
                };
                let Ok(mut there) = TcpStream::connect(target).await else {
                    return;
                };
                let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
            });
        }
    });
    (address, AbortOnDropHandle::new(task))
}

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
        let (address, _serving) = terminate(cloud.address(), signer, &names, years).await;
        let site = site(hint, "localhost", address, Some(&ours)).await;
        let replicator = site.replicate();
        rooms(&site, 1, 3).await;
        let told = why(&replicator).await;
        println!("{told}");
        let (said, mend) = told.split_once("; ").expect("a remedy");
        assert!(said.contains(cause), "{told}");
        assert!(mend.contains(remedy), "{told}");
        replicator.end().await;
        tally.faults += 1;
    }
    // A port that does not speak TLS
    let site = site("tls_plain", "localhost", cloud.address(), Some(&ours)).await;
    let replicator = site.replicate();
    let told = why(&replicator).await;
    assert!(
        told.contains("no TLS with the cloud") && told.contains("speaks TLS"),
        "{told}"
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
    let (address, _serving) = terminate(cloud.address(), &ours, &["localhost"], (2020, 2090)).await;
    let site = site("right_tls", "localhost", address, Some(&ours)).await;
    assert!(site.settings.cloud.ca_file.as_deref().is_some_and(Path::exists));
    let replicator = site.replicate();
    rooms(&site, 1, 50).await;
    replicator.caught_up().await;
    replicator.end().await;
    Tally::default().judge(&site, &cloud).await;
}
