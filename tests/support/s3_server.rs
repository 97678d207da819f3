//! A server of S3 that another project made, in this process: it keeps objects below a folder, whose folders are
//! the buckets.

use std::path::Path;

use axum::http::Method;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// The key that it takes, and its secret.
pub(crate) const KEY: [&str; 2] = ["test-key", "test-secret"];

/// The settings of a site that brings its files there, into the bucket `school`.
pub(crate) fn settings(endpoint: &str) -> String {
    let [key, secret] = KEY;
    format!(
        "driver = \"s3\"\nbucket = \"school\"\nendpoint = {endpoint:?}\nregion = \"us-east-1\"\n\
         access_key = {key:?}\nsecret_key = {secret:?}\n"
    )
}

/// Serves a folder. Returns the URL.
pub(crate) async fn serve(folder: &Path) -> String {
    serve_refusing(folder, "none").await
}

/// The same; it refuses to store objects whose keys hold this text.
pub(crate) async fn serve_refusing(folder: &Path, refused: &str) -> String {
    let refused = refused.to_owned();
    let mut service = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
    service.set_auth(s3s::auth::SimpleAuth::from_single(KEY[0], KEY[1]));
    let service = service.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        while let Ok((socket, _)) = listener.accept().await {
            let (refused, service) = (refused.clone(), service.clone());
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let is_refused = request.method() == Method::PUT && request.uri().path().contains(&refused);
                let service = service.clone();
                async move {
                    if is_refused {
                        let forbidden = hyper::Response::builder().status(403);
                        return Ok(forbidden.body(s3s::Body::empty()).unwrap());
                    }
                    // An answer before the end of a body might be lost with the connection.
                    let (head, body) = request.into_parts();
                    let body = axum::body::to_bytes(axum::body::Body::new(body), usize::MAX);
                    let body = body.await.unwrap_or_default();
                    let request = hyper::Request::from_parts(head, s3s::Body::from(body));
                    service.call(request).await
                }
            });
            let connection = server.serve_connection(TokioIo::new(socket), service);
            tokio::spawn(connection.into_owned());
        }
    });
    url
}
