//! The command line's side of the operator API.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{StatusReport, SyncReport, SyncRequest, token};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};

/// How long a status may take. A sync may take any time.
const STATUS_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks a running daemon. Each call answers none where no daemon listens.
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
            address: reachable(settings.control.listen),
            settings: settings.clone(),
        })
    }

    /// The daemon's status.
    ///
    /// # Errors
    /// The daemon's own error; what listens there is no daemon, or has another token.
    pub async fn status(&self) -> Result<Option<StatusReport>> {
        let request = self.http.get(self.url("status")).timeout(STATUS_TIMEOUT);
        self.ask("ask the daemon for its status", request).await
    }

    /// Runs a sync in the daemon, and answers when it has ended.
    ///
    /// # Errors
    /// The daemon's own error; what listens there is no daemon, or has another token.
    pub async fn sync_now(&self, request: &SyncRequest) -> Result<Option<SyncReport>> {
        let request = self.http.post(self.url("sync-now")).json(request);
        self.ask("have the daemon sync", request).await
    }

    fn url(&self, call: &str) -> String {
        format!("http://{}/api/cloud-sync/{call}", self.address)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        operation: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Option<T>> {
        if !self.listens().await {
            return Ok(None);
        }
        let token: SecretString = token::find(&self.settings)?;
        let broken = |error: reqwest::Error| {
            Error::new(Kind::Local, operation, crate::error::chain(&error))
                .remedy("look into the daemon's log")
        };
        let answer = request
            .bearer_auth(token.expose_secret())
            .send()
            .await
            .map_err(broken)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(broken)?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map(Some)
                .map_err(|_| self.stranger(operation));
        }
        if status == reqwest::StatusCode::UNAUTHORIZED {
            return Err(Error::config(operation, "the daemon knows another token")
                .remedy("use the daemon's own configuration and working directory, or its control.token"));
        }
        let refusal: ErrorAnswer = serde_json::from_slice(&body).map_err(|_| self.stranger(operation))?;
        let kind = match refusal.exit_code {
            2 => Kind::Config,
            3 => Kind::Source,
            4 => Kind::CloudProtocol,
            _ => Kind::Local,
        };
        Err(Error::new(kind, operation, refusal.errors.join("; ")))
    }

    /// Whether anything listens there. It is asked before the token is looked for: where nothing runs, none is needed.
    async fn listens(&self) -> bool {
        let connect = tokio::net::TcpStream::connect(self.address);
        matches!(
            tokio::time::timeout(Duration::from_secs(2), connect).await,
            Ok(Ok(_))
        )
    }

    fn stranger(&self, operation: &str) -> Error {
        Error::config(
            operation,
            format!("what listens on {} is not this version's daemon", self.address),
        )
        .remedy("set control.listen to the daemon's address")
    }
}

/// Where a server that listens on all addresses is reached from this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
