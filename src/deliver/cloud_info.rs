//! The handshake: asking the cloud who it is, what it can do, and how far our source has come there.

use std::collections::BTreeMap;

use reqwest::Method;

use super::failure::{CloudResult, Failure};
use super::http::HttpAnswer;
use super::reply::Verdict;
use super::{ChangeOrigin, Cloud};
use crate::checkpoint::Version;
use crate::wire::paths::SYNC_STATUS;
use crate::wire::{Capabilities, SourceProgress, SourcesMember, SyncStatusAnswer};

/// What the cloud says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudInfo {
    /// What to use: what it lists, or what the configuration forces.
    pub capabilities: Capabilities,
    /// What it lists and this program does not know: it is of a newer version.
    pub unknown_capabilities: Vec<String>,
    /// What the configuration forces and it does not list.
    pub unlisted_capabilities: Vec<&'static str>,
    /// The site that the key belongs to, if the server says so.
    pub site: Option<String>,
    /// The server's own identity, if it says so.
    pub receiver: Option<String>,
    /// The last batch that it has taken from our source, if it says so.
    pub version: Option<Version>,
    /// The database that our source was when that batch came.
    pub database: Option<String>,
    /// The highest epoch of any source of the site.
    pub highest_epoch: i64,
    /// Whether it says how far each source has come: then no version means that it has nothing of our source.
    pub tells_version: bool,
    /// When it last took something in, in its own words.
    pub last_sync: Option<String>,
}

impl Cloud {
    /// Asks the cloud who it is and what it can do: `GET /sync-status`, or the path that the configuration
    /// names instead.
    pub async fn handshake(&self, origin: &ChangeOrigin) -> CloudResult<CloudInfo> {
        let operation = "ask the cloud for its status";
        let http = &self.inner.http;
        let path = http.status_path();
        let ask = || http.call(operation, http.request(Method::GET, path), 0);
        let mut answer = ask().await;
        if answer
            .as_ref()
            .is_err_and(|failure| matches!(failure.status(), Some(300..=399)) && failure.is_transient())
        {
            // It wants a slash at the end of its addresses, and gets it from now on.
            answer = ask().await;
        }
        let reply = match answer? {
            HttpAnswer::Accepted(reply) => reply,
            HttpAnswer::Refused { status, .. } => {
                return Err(Failure::protocol(
                    operation,
                    format!("the cloud answered {status} to GET /{path}"),
                    "check cloud.url: it must be the API's base URL, as in https://cloud.example/api; a \
                     server with another status call needs cloud.prefix and cloud.status_path, see \
                     `cloud-sync check --cloud`",
                )
                .with_status(status));
            }
        };
        let is_contract = path == SYNC_STATUS;
        let status = match reply.json::<SyncStatusAnswer>(operation) {
            Ok(status) => status.unwrapped(),
            // The status of another server may have any form that says no failure.
            Err(failure) => match reply.verdict(operation, None)? {
                Verdict::Accepted if !is_contract => SyncStatusAnswer::default(),
                _ => return Err(failure),
            },
        };
        let is_ok = match &status.status {
            Some(word) => {
                word == "ok" || (!is_contract && reply.verdict(operation, None)? == Verdict::Accepted)
            }
            None => !is_contract && reply.verdict(operation, None)? == Verdict::Accepted,
        };
        if !is_ok {
            let word = status.status.as_deref().unwrap_or("missing");
            return Err(Failure::protocol(
                operation,
                format!("its status is {:?}, not \"ok\"", http.clean(word)),
                "look at the cloud's own logs",
            ));
        }
        let listed = status.capabilities.unwrap_or_default();
        let (offered, unknown) = Capabilities::from_names(listed.iter().map(String::as_str));
        let mut capabilities = self.inner.forced.unwrap_or(offered);
        let unlisted = capabilities
            .names()
            .into_iter()
            .filter(|name| !offered.names().contains(name));
        let unlisted_capabilities = unlisted.collect();
        let mut entities = self.catalogue().entities().iter();
        let text_key = entities.find_map(|entity| Some((&entity.name, entity.text_key()?)));
        if let Some((entity, column)) = text_key.filter(|_| capabilities.changes) {
            return Err(Failure::protocol(
                operation,
                format!(
                    "entity {entity} has its key column {column} as text, and the cloud takes numbered changes: \
                     both sides find a row by its key as it is"
                ),
                "take the key column out of the entity's columns; if the cloud's server wants its keys as text, \
                 list what it can do in cloud.capabilities, without changes",
            ));
        }
        let mut entities = self.catalogue().entities().iter();
        if entities.any(|entity| entity.server_setting().is_some()) {
            // Rows in a form of the server's own are sent by the calls of a baseline server.
            (capabilities.changes, capabilities.schema) = (false, false);
        }
        let tells_version = capabilities.changes && status.sources.is_some();
        let sources: BTreeMap<String, SourceProgress> = match status.sources {
            Some(SourcesMember::Known(sources)) if tells_version => sources,
            Some(SourcesMember::Other(_)) if tells_version => {
                return Err(Failure::protocol(
                    operation,
                    "its list of sources does not say epoch, term and batch",
                    "check the cloud's server",
                ));
            }
            _ => BTreeMap::new(),
        };
        let own_source = sources.get(&origin.source_id);
        Ok(CloudInfo {
            capabilities,
            unknown_capabilities: unknown.into_iter().map(|name| http.clean(name)).collect(),
            unlisted_capabilities,
            site: status.site.map(|site| http.clean(&site)),
            receiver: status.receiver.map(|receiver| http.clean(&receiver)),
            version: own_source.map(|source| Version {
                epoch: source.epoch,
                term: source.term,
                batch: source.batch,
            }),
            database: own_source.and_then(|source| source.database.clone()),
            highest_epoch: sources.values().map(|source| source.epoch).max().unwrap_or(0),
            tells_version,
            last_sync: status.last_sync.map(|text| http.clean(&text)),
        })
    }
}
