//! The command line's side of the operator API.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{StatusReport, SyncReport, SyncRequest, token};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};

/// How long a status request may take. A sync may take any time.
const STATUS_TIMEOUT: Duration = Duration::from_secs(30);

/// Calls the operator API of a running daemon. Each call returns `None` if no daemon listens.
pub struct ControlClient {
    http: reqwest::Client,
    address: SocketAddr,
    settings: Settings,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    errors: Vec<String>,
    exit_code: u8,
}

impl ControlClient {
    /// A client of the daemon that these settings describe.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(settings: &Settings) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(2))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Error::new(Kind::Local, "set up an HTTP client", crate::error::chain(&error)))?;
        Ok(Self {
            http,
            address: connectable(settings.control.listen),
            settings: settings.clone(),
        })
    }

    /// The daemon's status.
    ///
    /// # Errors
    /// The daemon's own error; the program that listens there is no daemon, or has another token.
    pub async fn status(&self) -> Result<Option<StatusReport>> {
        let request = self.http.get(self.url("status")).timeout(STATUS_TIMEOUT);
        self.send_request("ask the daemon for its status", request).await
    }

    /// Runs a sync in the daemon, and returns its report when it has ended.
    ///
    /// # Errors
    /// The daemon's own error; the program that listens there is no daemon, or has another token.
    pub async fn sync_now(&self, request: &SyncRequest) -> Result<Option<SyncReport>> {
        let request = self.http.post(self.url("sync-now")).json(request);
        self.send_request("have the daemon sync", request).await
    }

    fn url(&self, call: &str) -> String {
        format!("http://{}/api/cloud-sync/{call}", self.address)
    }

    async fn send_request<T: DeserializeOwned>(
        &self,
        operation: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Option<T>> {
        if !self.is_listening().await {
            return Ok(None);
        }
        let token: SecretString = token::load(&self.settings)?;
        let request_error = |error: reqwest::Error| {
            Error::new(Kind::Local, operation, crate::error::chain(&error)).remedy("see the daemon's log")
        };
        let answer = request
            .bearer_auth(token.expose_secret())
            .send()
            .await
            .map_err(request_error)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(request_error)?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map(Some)
                .map_err(|_| self.not_the_daemon(operation));
        }
        if status == reqwest::StatusCode::UNAUTHORIZED {
            return Err(Error::config(operation, "the daemon knows another token")
                .remedy("use the daemon's own configuration and working directory, or its control.token"));
        }
        let refusal: ErrorAnswer =
            serde_json::from_slice(&body).map_err(|_| self.not_the_daemon(operation))?;
        let kind = match refusal.exit_code {
            2 => Kind::Config,
            3 => Kind::Source,
            4 => Kind::CloudProtocol,
            _ => Kind::Local,
        };
        Err(Error::new(kind, operation, refusal.errors.join("; ")))
    }

    /// Whether anything listens there. This comes before the look-up of the token: if nothing runs, none is
    /// needed.
    async fn is_listening(&self) -> bool {
        let connect = tokio::net::TcpStream::connect(self.address);
        matches!(
            tokio::time::timeout(Duration::from_secs(2), connect).await,
            Ok(Ok(_))
        )
    }

    fn not_the_daemon(&self, operation: &str) -> Error {
        Error::config(
            operation,
            format!("what listens on {} is not a daemon of this version", self.address),
        )
        .remedy("set control.listen to the daemon's address")
    }
}

/// The address at which this machine reaches a server: loopback if the server listens on all addresses.
pub(super) fn connectable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
