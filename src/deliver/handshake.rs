//! The status call: who the cloud is, what it can do, how far our source has come there.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::failure::{CloudResult, Failure};
use super::http::HttpAnswer;
use super::reply::Verdict;
use super::{ChangeOrigin, Cloud};
use crate::checkpoint::Version;
use crate::fields::plain;

/// What a server can do beside the baseline.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Capabilities {
    /// `POST /bulk/{path}`.
    pub bulk: bool,
    /// `DELETE /{path}/{key}`.
    pub delete: bool,
    /// `POST /changes`.
    pub changes: bool,
    /// `PUT /schema/{path}`.
    pub schema: bool,
    /// Resumable uploads at `/files`.
    pub tus: bool,
    /// `HEAD /upload/{directory}?hash=…`.
    pub content_hash: bool,
}

impl Capabilities {
    /// The capabilities with these names on the wire; answers also the names that it does not know.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> (Self, Vec<&'a str>) {
        let mut known = Self::default();
        let mut unknown = Vec::new();
        for name in names {
            match name {
                "bulk" => known.bulk = true,
                "delete" => known.delete = true,
                "changes" => known.changes = true,
                "schema" => known.schema = true,
                "tus" => known.tus = true,
                "content-hash" => known.content_hash = true,
                _ => unknown.push(name),
            }
        }
        (known, unknown)
    }

    /// Their names on the wire.
    pub fn names(self) -> Vec<&'static str> {
        [
            (self.bulk, "bulk"),
            (self.delete, "delete"),
            (self.changes, "changes"),
            (self.schema, "schema"),
            (self.tus, "tus"),
            (self.content_hash, "content-hash"),
        ]
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name))
        .collect()
    }
}

/// What the cloud says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudInfo {
    /// What to use: what it lists, or what the configuration forces.
    pub capabilities: Capabilities,
    /// The site that the key belongs to, where the server says so.
    pub site: Option<String>,
    /// The server's own identity, where it says so.
    pub receiver: Option<String>,
    /// The last batch that it has taken from our source, where it says so.
    pub version: Option<Version>,
    /// The database that our source was when that batch came.
    pub database: Option<String>,
    /// The highest epoch of any source of the site.
    pub highest_epoch: i64,
    /// Whether it says how far each source has come: then no version means that it has nothing of ours.
    pub tells_version: bool,
    /// When it last took something in, in its own words.
    pub last_sync: Option<String>,
}

impl Cloud {
    /// Asks the cloud who it is and what it can do: `GET /sync-status`, or the path that the configuration
    /// names in its place.
    pub async fn hello(&self, origin: &ChangeOrigin) -> CloudResult<CloudInfo> {
        let operation = "ask the cloud for its status";
        let link = &self.inner.link;
        let path = link.status_path();
        let ask = || link.call(operation, link.request(Method::GET, path), 0);
        let mut answer = ask().await;
        if answer
            .as_ref()
            .is_err_and(|failure| matches!(failure.status(), Some(300..=399)) && failure.is_passing())
        {
            // It wants a slash at the end of its addresses, and has it from now on.
            answer = ask().await;
        }
        let reply = match answer? {
            HttpAnswer::Accepted(reply) => reply,
            HttpAnswer::Refused { status, .. } => {
                return Err(Failure::protocol(
                    operation,
                    format!("the cloud answered {status} to GET /{path}"),
                    "check cloud.url: it must be the API's base URL, as in https://cloud.example/api; a server with another \
                     status call needs cloud.prefix and cloud.status_path, see `cloud-sync check --cloud`",
                )
                .with_status(status));
            }
        };
        let is_contract = path == STATUS_PATH;
        let status: SyncStatusAnswer<'_> = match reply.json(operation) {
            Ok(status) => status,
            // Another server's status may be of any form that says no failure.
            Err(failure) => match reply.verdict(operation, None)? {
                Verdict::Accepted if !is_contract => SyncStatusAnswer::default(),
                _ => return Err(failure),
            },
        };
        let is_well = match &status.status {
            Some(word) => {
                word == "ok" || (!is_contract && reply.verdict(operation, None)? == Verdict::Accepted)
            }
            None => !is_contract && reply.verdict(operation, None)? == Verdict::Accepted,
        };
        if !is_well {
            let word = status.status.as_deref().unwrap_or("missing");
            return Err(Failure::protocol(
                operation,
                format!("its status is {:?}, not \"ok\"", link.clean(word)),
                "look at the cloud's own logs",
            ));
        }
        let listed = status.capabilities.unwrap_or_default();
        let mut capabilities = self
            .inner
            .forced
            .unwrap_or_else(|| Capabilities::from_names(listed.iter().map(|name| &**name)).0);
        let mut entities = self.catalogue().entities().iter();
        if entities.any(|entity| entity.server_setting().is_some()) {
            // Rows in a form of the server's own go by the calls that have one.
            (capabilities.changes, capabilities.schema) = (false, false);
        }
        let tells_version = capabilities.changes && status.sources.is_some();
        let sources: BTreeMap<String, SourceAnswer> = match status.sources {
            Some(sources) if tells_version => serde_json::from_str(sources.get()).map_err(|_| {
                Failure::protocol(
                    operation,
                    "its list of sources does not say epoch, term and batch",
                    "check the cloud's server",
                )
            })?,
            _ => BTreeMap::new(),
        };
        let own = sources.get(&origin.source_id);
        Ok(CloudInfo {
            capabilities,
            site: status.site.map(|site| link.clean(&site)),
            receiver: status.receiver.map(|receiver| link.clean(&receiver)),
            version: own.map(|own| Version {
                epoch: own.epoch,
                term: own.term,
                batch: own.batch,
            }),
            database: own.and_then(|own| own.database.clone()),
            highest_epoch: sources.values().map(|source| source.epoch).max().unwrap_or(0),
            tells_version,
            last_sync: status.last_sync.and_then(plain).map(|text| link.clean(&text)),
        })
    }
}

/// The contract's status call.
pub const STATUS_PATH: &str = "sync-status";

/// `GET /sync-status`, as far as it matters.
#[derive(Deserialize, Default)]
struct SyncStatusAnswer<'a> {
    #[serde(default)]
    status: Option<String>,
    #[serde(default, borrow)]
    last_sync: Option<&'a RawValue>,
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    site: Option<String>,
    #[serde(default, borrow)]
    sources: Option<&'a RawValue>,
    #[serde(default)]
    receiver: Option<String>,
}

/// How far a source has come.
#[derive(Deserialize)]
struct SourceAnswer {
    epoch: i64,
    term: i64,
    batch: i64,
    #[serde(default)]
    database: Option<String>,
}
