//! The cloud's client: it brings batches and files to the cloud, and asks what the cloud has.
//!
//! - [`Cloud::handshake`] asks what the server can do. [`Cloud::deliver`] then takes the best road: `POST
//!   /changes` if the server lists it ([`changes`]), else row by row or in bulk, parents before children
//!   ([`baseline`]).
//! - Either road marks the fate of each change in the batch as soon as its answer comes. So a delivery that
//!   was interrupted, or whose future was dropped, goes on with what is pending. What was sent and not
//!   answered is sent again, which is harmless.
//! - [`http`] decides which statuses stop every call; each call decides what its own 4xx mean, and [`reply`]
//!   whether a 2xx accepts. What travels is in [`crate::wire`].
//! - A file goes in one request ([`files`]), or in parts that outlast interruptions ([`tus`]).
//! - A [`Failure`] says whether it is transient, how long the server asks to wait, and whether a capability
//!   is gone.

mod array_splitter;
mod baseline;
mod bulk;
mod bulk_errors;
mod changes;
mod changes_answer;
mod cloud_info;
mod encoded_body;
mod failure;
mod file_stream;
mod files;
mod http;
mod in_flight;
mod key_forms;
mod key_safety;
mod list;
mod numbering;
mod object_storage;
mod page;
mod probe;
mod refusal_words;
mod reply;
mod request_sizer;
mod resumable;
mod row_form;
mod row_requests;
mod rows;
mod transport_error;
mod tus;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use secrecy::SecretString;
use serde_json::value::RawValue;
use url::Url;

pub use cloud_info::CloudInfo;
pub use failure::{CloudResult, Failure};
pub use files::{UploadFile, UploadForm, UploadReceipt, UploadThrottle};
pub use in_flight::InFlight;
pub use numbering::Numbering;
pub use object_storage::{ObjectStorage, StorageKind, StorageOptions};
pub use probe::ProbeAnswer;
pub use resumable::{BegunUpload, PART_TIME, ResumableUpload};

use crate::batch::{Batch, ChangeIndex};
use crate::catalogue::{Catalogue, Entity, EntityIndex};
use crate::change::Epoch;
use crate::checkpoint::Identity;
use crate::error::{Error, Kind, Result};
use crate::wire::paths::{self, SYNC_STATUS};
pub use crate::wire::{Capabilities, SchemaDeclaration};
use crate::wire::{Capability, ErrorCode, JSON, SuccessAnswer, headers};
use http::{HttpAnswer, HttpClient};
use in_flight::{PipelineDepth, Uplink};
use request_sizer::RequestSizer;
use row_form::RowForm;

/// Rows of one bulk request, at most.
const MAX_BULK_ROWS: usize = 500;

/// How to reach the cloud.
#[derive(Clone)]
pub struct CloudOptions {
    /// The API's base URL.
    pub url: Url,
    /// The API key, sent as a bearer token.
    pub key: SecretString,
    /// How long an answer may take, in addition to the time that the request's body needs.
    pub timeout: Duration,
    /// Whether `http://` to another machine is allowed.
    pub allow_insecure_http: bool,
    /// A PEM file of further CA certificates.
    pub ca_file: Option<PathBuf>,
    /// The capabilities to use, whatever the server lists; `None` means those that it lists.
    pub forced: Option<Vec<String>>,
    /// How many requests may be in flight at once, where order allows it.
    pub in_flight: usize,
    /// Whether to compress the bodies of `POST /changes`.
    pub compress: bool,
    /// The path below the URL that all calls have before their own; empty if there is none.
    pub prefix: String,
    /// The path of the status call.
    pub status_path: String,
    /// The form of an upload.
    pub upload: UploadForm,
    /// Whether a row that belongs to another entity of its table now is deleted under the old path before it
    /// is sent under the new one; else it is only sent under the new one.
    pub delete_moved: bool,
}

impl CloudOptions {
    /// A server of the contract, with the defaults of the settings.
    pub fn new(url: Url, key: SecretString) -> Self {
        Self {
            url,
            key,
            timeout: Duration::from_secs(30),
            allow_insecure_http: false,
            ca_file: None,
            forced: None,
            in_flight: 16,
            compress: false,
            prefix: String::new(),
            status_path: SYNC_STATUS.to_owned(),
            upload: UploadForm::default(),
            delete_moved: true,
        }
    }
}

/// Where changes come from: versions are ordered within one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeOrigin {
    /// The source database's id.
    pub source_id: String,
    /// Which outbox it is.
    pub epoch: Epoch,
    /// Which database of which server it is.
    pub database: String,
}

impl From<&Identity> for ChangeOrigin {
    fn from(identity: &Identity) -> Self {
        Self {
            source_id: identity.source_id.clone(),
            epoch: identity.epoch,
            database: identity.database(),
        }
    }
}

/// An entity's columns, and the path that they are declared at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSchema {
    /// The entity's resource path.
    pub path: String,
    /// What the cloud gets.
    pub declaration: SchemaDeclaration,
}

/// The client. Clones share one HTTP client with its kept connections.
#[derive(Clone)]
pub struct Cloud {
    inner: Arc<CloudInner>,
}

struct CloudInner {
    http: HttpClient,
    catalogue: Arc<Catalogue>,
    /// The form of each entity's rows, if the server wants another one than ours.
    row_forms: Vec<Option<RowForm>>,
    /// How many rows of each entity go in one bulk request: fewer after the server left some out.
    bulk_rows: Vec<AtomicUsize>,
    upload: UploadForm,
    delete_moved: bool,
    forced: Option<Capabilities>,
    in_flight: usize,
    /// Turned off if the server answers that it does not know zstd.
    compress: AtomicBool,
    sizer: RequestSizer,
    uplink: Uplink,
    depth: Mutex<PipelineDepth>,
}

impl Cloud {
    /// A client for one cloud. It sends nothing yet.
    ///
    /// # Errors
    /// A configuration error: the URL, the key, the CA file, an unknown forced capability.
    pub fn new(options: CloudOptions, catalogue: Arc<Catalogue>) -> Result<Self> {
        let forced = match &options.forced {
            None => None,
            Some(names) => match Capabilities::from_names(names.iter().map(String::as_str)) {
                (known, unknown) if unknown.is_empty() => Some(known),
                (_, unknown) => {
                    let cause = format!("there is no capability {:?}", unknown[0]);
                    let known = Capability::NAMES.join(", ");
                    return Err(Error::config("use cloud.capabilities", cause)
                        .remedy(format!("set \"auto\" or a list of {known}")));
                }
            },
        };
        Ok(Self {
            inner: Arc::new(CloudInner {
                http: HttpClient::new(&options)?,
                row_forms: catalogue.entities().iter().map(RowForm::of).collect(),
                bulk_rows: catalogue
                    .entities()
                    .iter()
                    .map(|_| AtomicUsize::new(MAX_BULK_ROWS))
                    .collect(),
                catalogue,
                upload: options.upload,
                delete_moved: options.delete_moved,
                forced,
                in_flight: options.in_flight.max(1),
                compress: AtomicBool::new(options.compress),
                sizer: RequestSizer::new(),
                uplink: Uplink::new(),
                depth: Mutex::default(),
            }),
        })
    }

    /// Brings what is pending in the batch to the cloud, and marks the fate of each change.
    ///
    /// # Errors
    /// What stopped it: the cloud is unreachable, refuses the key, or breaks its contract. What it had not
    /// yet answered stays pending, and the next call goes on there. A change that the cloud refuses for good
    /// is no error; it is marked.
    pub async fn deliver(
        &self,
        capabilities: Capabilities,
        origin: &ChangeOrigin,
        numbering: &mut Numbering,
        batch: &mut Batch,
    ) -> CloudResult<()> {
        self.deliver_in_flight(capabilities, origin, numbering, batch, None)
            .await
    }

    /// The same for a batch that may be in flight already.
    #[tracing::instrument(
        name = "push",
        level = "debug",
        skip_all,
        fields(changes = batch.len(), in_flight = in_flight.is_some())
    )]
    pub async fn deliver_in_flight(
        &self,
        capabilities: Capabilities,
        origin: &ChangeOrigin,
        numbering: &mut Numbering,
        batch: &mut Batch,
        in_flight: Option<InFlight>,
    ) -> CloudResult<()> {
        baseline::mark_unsupported(capabilities, batch);
        if capabilities.changes {
            changes::deliver(self, origin, numbering, batch, in_flight).await
        } else {
            baseline::deliver(self, capabilities, batch).await
        }
    }

    /// Sends a batch before the one before it is answered; [`Cloud::deliver_in_flight`] finishes it. Only for
    /// a cloud that takes batches in order ([`Numbering::in_order`]). The second value is the hash of the
    /// request's text. `None` if the batch takes more than one request, or if a text with another hash than
    /// `sent` was sent under this number before.
    pub async fn send_behind(
        &self,
        origin: &ChangeOrigin,
        numbering: &Numbering,
        number: i64,
        batch: &Batch,
        sent: Option<blake3::Hash>,
    ) -> Option<(InFlight, blake3::Hash)> {
        changes::begin(self, origin, numbering, number, batch, sent).await
    }

    /// How many batches should be in flight at once.
    pub fn depth(&self) -> usize {
        self.lock_depth().batches().min(self.inner.in_flight)
    }

    /// Declares an entity's columns: `PUT /schema/{path}`. Only if the server lists `schema`.
    pub async fn put_schema(&self, origin: &ChangeOrigin, schema: &TableSchema) -> CloudResult<()> {
        let operation = format!(
            "declare the columns of {} to the cloud",
            schema.declaration.entity
        );
        let body = serde_json::to_vec(&schema.declaration)
            .map_err(|error| Error::new(Kind::Local, operation.as_str(), error.to_string()))?;
        let http = &self.inner.http;
        let bytes = body.len();
        let request = http
            .request(Method::PUT, &paths::schema_of(&schema.path))
            .header(CONTENT_TYPE, JSON)
            .header(headers::SOURCE_ID, &origin.source_id)
            .body(body);
        match http.call(&operation, request, bytes).await? {
            HttpAnswer::Accepted(reply) => check_success(reply.json(&operation)?, &operation),
            HttpAnswer::Refused {
                words,
                code: Some(ErrorCode::OtherSource),
                ..
            } => Err(Error::new(Kind::Identity, operation.as_str(), words)
                .remedy(
                    "two databases must not share an entity's rows under one key: give the entity \
                         another name here, or, if this database takes the other one's place, set \
                         source.source_id to the name of that source",
                )
                .into()),
            HttpAnswer::Refused { status, .. } if matches!(status, 404 | 405) => {
                Err(Failure::capability(&operation, Capability::Schema, status))
            }
            HttpAnswer::Refused { status, words, .. } => Err(refused(&operation, status, &words)),
        }
    }

    /// Calls `row` for each object that the cloud has of the entity, or of its last `days` days. The list is
    /// streamed: one row is in memory at a time. An error of `row` ends it. Returns how many pages the list
    /// had.
    pub async fn list(
        &self,
        entity: EntityIndex,
        days: Option<u32>,
        row: impl FnMut(&RawValue) -> Result<()>,
    ) -> CloudResult<usize> {
        let entity = self.entity(entity);
        let operation = format!("list {} in the cloud", entity.name);
        list::list(&self.inner.http, &operation, entity, days, row).await
    }

    /// Sends a file to `POST /upload/{directory}`, read and hashed as it goes.
    ///
    /// # Errors
    /// The cloud's; and [`Kind::Media`] if the file cannot be read, changed while it was sent, or arrived
    /// with another content hash.
    pub async fn upload(&self, directory: &str, file: UploadFile) -> CloudResult<UploadReceipt> {
        files::upload(&self.inner.http, &self.inner.upload, directory, file).await
    }

    /// Sends a file in parts, from where an earlier call has stopped. Only if the server lists `tus`.
    ///
    /// # Errors
    /// The cloud's: what has arrived stays there, and [`ResumableUpload::note`] has the place. And
    /// [`Kind::Media`] if the file cannot be read, or its content is not the one with the hash.
    pub async fn upload_resumable(&self, upload: ResumableUpload<'_>) -> CloudResult<UploadReceipt> {
        tus::upload(&self.inner.http, upload).await
    }

    /// Ends an upload in parts that is not complete, at an address that [`ResumableUpload::note`] has told.
    /// The cloud need not know it any more.
    pub async fn end_upload(&self, address: &str) -> CloudResult<()> {
        tus::end(&self.inner.http, address).await
    }

    /// The URL of the content with this hash, if the cloud already has it: `HEAD /upload/{directory}?hash=…`.
    /// Only if the server lists `content-hash`.
    pub async fn find_content(&self, directory: &str, hash: &blake3::Hash) -> CloudResult<Option<String>> {
        files::find(&self.inner.http, directory, hash).await
    }

    /// The API's base URL.
    pub fn url(&self) -> &str {
        self.inner.http.base()
    }

    /// How long a request may take, in addition to the time that its body needs.
    pub fn timeout(&self) -> Duration {
        self.inner.http.timeout()
    }

    /// The catalogue whose entities it delivers.
    pub fn catalogue(&self) -> &Catalogue {
        &self.inner.catalogue
    }

    fn entity(&self, entity: EntityIndex) -> &Entity {
        &self.inner.catalogue[entity]
    }

    /// A key of the site, a JSON object, as the cloud has it: with the cloud's names and forms. A key that
    /// has no such form stays as it is.
    pub fn cloud_key_of<'k>(&self, entity: EntityIndex, key: &'k str) -> Cow<'k, str> {
        match self.row_form(entity).map(|form| form.apply(key)) {
            Some(Ok(key)) => Cow::Owned(key),
            _ => Cow::Borrowed(key),
        }
    }

    /// Whether a row that belongs to another entity of its table now is deleted under the old path.
    pub fn deletes_moved(&self) -> bool {
        self.inner.delete_moved
    }

    fn row_form(&self, entity: EntityIndex) -> Option<&RowForm> {
        self.inner.row_forms[entity.0].as_ref()
    }

    fn bulk_rows(&self, entity: EntityIndex) -> &AtomicUsize {
        &self.inner.bulk_rows[entity.0]
    }

    /// Notes whether a bulk request was taken as a whole. Rows that the server left out are found by sending
    /// the others again: the fewer go together, the less is sent again.
    fn record_bulk(&self, entity: EntityIndex, whole: bool) {
        let rows = self.bulk_rows(entity);
        let now = rows.load(Ordering::Relaxed);
        let next = if whole {
            (now * 2).min(MAX_BULK_ROWS)
        } else {
            (now / 4).max(1)
        };
        rows.store(next, Ordering::Relaxed);
    }

    /// What a delivery of these changes is called in messages.
    fn push_operation(&self, batch: &Batch, changes: &[ChangeIndex]) -> String {
        let mut entities = changes.iter().map(|&change_index| batch[change_index].entity);
        match entities.next() {
            Some(first) if entities.all(|other| other == first) => self.push_entity_operation(first),
            _ => "push changes to the cloud".to_owned(),
        }
    }

    fn push_entity_operation(&self, entity: EntityIndex) -> String {
        format!("push {} to the cloud", self.entity(entity).name)
    }

    /// Notes an answer to changes: see [`PipelineDepth::record_answer`].
    fn record_answer(&self, begun: tokio::time::Instant, is_alone: bool, applied: Option<Duration>) {
        self.lock_depth().record_answer(begun, is_alone, applied);
    }

    fn lock_depth(&self) -> MutexGuard<'_, PipelineDepth> {
        self.inner.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(operation: &str, status: u16, words: &str) -> Failure {
    Failure::new(
        Kind::CloudRefused,
        operation,
        format!("the cloud answered {status}: {words}"),
    )
    .with_status(status)
}

/// Fails if a 2xx says that the cloud did not do what was asked.
fn check_success(answer: SuccessAnswer, operation: &str) -> CloudResult<()> {
    if answer.success {
        return Ok(());
    }
    Err(Failure::protocol(
        operation,
        "the cloud answered 200 and yet success: false",
        "the contract wants a 4xx for what is refused: look at the cloud's own logs",
    ))
}
