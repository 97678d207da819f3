//! The cloud's client: it brings batches and files to the cloud, and asks what the cloud has.
//!
//! [`Cloud::hello`] learns what the server can do; [`Cloud::deliver`] then takes the best road: `POST
//! /changes` where it is listed, else row by row (or in bulk), parents before children. Either marks the fate
//! of each change in the batch as its answer comes, so that a delivery that broke off, or whose future was
//! dropped, goes on with what is pending; what was sent and not answered is sent again, which is harmless.
//!
//! Every status means what DESIGN section 4 says, in one place: `link`. A failure says whether it passes, how
//! long the server asks to wait, and whether a capability is gone ([`Failure`]).

mod array_splitter;
mod baseline;
mod changes;
mod failure;
mod fields;
mod file_stream;
mod files;
mod handshake;
mod http;
mod in_flight;
mod list;
mod numbering;
mod page;
mod partial;
mod probe;
mod reply;
mod row_form;
mod rows;
mod secure;
mod transport_error;
mod words;

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

pub use failure::{CloudResult, Failure};
pub use files::{UploadFile, UploadForm, UploadReceipt, UploadThrottle};
pub use handshake::CloudInfo;
pub use in_flight::InFlight;
pub use numbering::Numbering;
pub use probe::ProbeAnswer;

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
use row_form::RowForm;

/// The smallest request that a 413 makes this client fall back to, in bytes.
const SMALLEST_REQUEST: usize = 16 * 1024;

/// Rows of one bulk request, at most.
const BULK_ROWS: usize = 500;

/// How to reach the cloud.
#[derive(Clone)]
pub struct CloudOptions {
    /// The API's base URL.
    pub url: Url,
    /// The API key, sent as a bearer token.
    pub key: SecretString,
    /// How long an answer may take, beside the time that the request's body needs.
    pub timeout: Duration,
    /// Whether `http://` to another machine is allowed.
    pub allow_insecure_http: bool,
    /// A PEM file of further CA certificates.
    pub ca_file: Option<PathBuf>,
    /// The capabilities to use, whatever the server lists; none means those that it lists.
    pub forced: Option<Vec<String>>,
    /// How many requests may be under way at once, where order allows it.
    pub in_flight: usize,
    /// Whether to compress the bodies of `POST /changes`.
    pub compress: bool,
    /// The path below the URL that all calls lie below; none where it is empty.
    pub prefix: String,
    /// The path of the status call.
    pub status_path: String,
    /// The form of an upload.
    pub upload: UploadForm,
    /// Whether a row that belongs to another entity of its table now is deleted under the old path before it
    /// is sent under the new one; else the new one alone is sent.
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
    link: HttpClient,
    catalogue: Arc<Catalogue>,
    /// The forms of the entities' rows, where the server wants another one than ours.
    forms: Vec<Option<RowForm>>,
    /// How many rows of each entity go in one bulk request: fewer where the server left some out.
    bulk_rows: Vec<AtomicUsize>,
    upload: UploadForm,
    delete_moved: bool,
    forced: Option<Capabilities>,
    in_flight: usize,
    /// Turned off where the server answers that it does not know zstd.
    compress: AtomicBool,
    /// How long a request's text may be: learnt from the server's 413.
    request_bytes: AtomicUsize,
    /// How long a request's text had better be, after longer ones broke off under way.
    stride: AtomicUsize,
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
                link: HttpClient::new(&options)?,
                forms: catalogue.entities().iter().map(RowForm::of).collect(),
                bulk_rows: catalogue
                    .entities()
                    .iter()
                    .map(|_| AtomicUsize::new(BULK_ROWS))
                    .collect(),
                catalogue,
                upload: options.upload,
                delete_moved: options.delete_moved,
                forced,
                in_flight: options.in_flight.max(1),
                compress: AtomicBool::new(options.compress),
                request_bytes: AtomicUsize::new(usize::MAX),
                stride: AtomicUsize::new(usize::MAX),
                uplink: Uplink::new(),
                depth: Mutex::default(),
            }),
        })
    }

    /// Brings what is pending in the batch to the cloud, and marks the fate of each change.
    ///
    /// # Errors
    /// What stopped it: the cloud is away, refuses the key, or breaks its contract. What it had not yet answered stays
    /// pending, and the next call goes on there. A change that the cloud refuses for good is no error; it is marked.
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
    #[tracing::instrument(name = "push", level = "debug", skip_all, fields(changes = batch.len(), in_flight = in_flight.is_some()))]
    pub async fn deliver_in_flight(
        &self,
        capabilities: Capabilities,
        origin: &ChangeOrigin,
        numbering: &mut Numbering,
        batch: &mut Batch,
        in_flight: Option<InFlight>,
    ) -> CloudResult<()> {
        baseline::settle(capabilities, batch);
        if capabilities.changes {
            changes::deliver(self, origin, numbering, batch, in_flight).await
        } else {
            baseline::deliver(self, capabilities, batch).await
        }
    }

    /// Sends a batch before the one before it is answered, for [`Cloud::deliver_in_flight`] to end. Only at a
    /// cloud that takes batches in order ([`Numbering::in_order`]); nothing where the batch does not go in
    /// one request, or went under this number with another body than `sent`. The second value is the body's
    /// hash.
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

    /// How many batches are worth being in flight at once.
    pub fn depth(&self) -> usize {
        self.lock_depth().batches().min(self.inner.in_flight)
    }

    /// Tells the cloud an entity's columns: `PUT /schema/{path}`. Only where `schema` is listed.
    pub async fn put_schema(&self, origin: &ChangeOrigin, schema: &TableSchema) -> CloudResult<()> {
        let operation = format!("tell the cloud the columns of {}", schema.declaration.entity);
        let body = serde_json::to_vec(&schema.declaration)
            .map_err(|error| Error::new(Kind::Local, operation.as_str(), error.to_string()))?;
        let link = &self.inner.link;
        let bytes = body.len();
        let request = link
            .request(Method::PUT, &paths::schema_of(&schema.path))
            .header(CONTENT_TYPE, JSON)
            .header(headers::SOURCE_ID, &origin.source_id)
            .body(body);
        match link.call(&operation, request, bytes).await? {
            HttpAnswer::Accepted(reply) => check_success(reply.json(&operation)?, &operation),
            HttpAnswer::Refused {
                words,
                code: Some(ErrorCode::OtherSource),
                ..
            } => {
                Err(Error::new(Kind::Identity, operation.as_str(), words)
                    .remedy(
                        "two databases must not share an entity's rows under one key: give the entity another name here, \
                         or, if this database takes the other one's place, set source.source_id to the name of that source",
                    )
                    .into())
            }
            HttpAnswer::Refused { status, .. } if matches!(status, 404 | 405) => {
                Err(Failure::capability(&operation, Capability::Schema, status))
            }
            HttpAnswer::Refused { status, words, .. } => Err(refused(&operation, status, &words)),
        }
    }

    /// Calls `row` for each object that the cloud has of the entity, or of its last `days` days. The list is
    /// streamed: one row is held at a time. An error of `row` ends it. Returns in how many pages it came.
    pub async fn list(
        &self,
        entity: EntityIndex,
        days: Option<u32>,
        row: impl FnMut(&RawValue) -> Result<()>,
    ) -> CloudResult<usize> {
        let entity = self.entity(entity);
        let operation = format!("list {} in the cloud", entity.name);
        list::list(&self.inner.link, &operation, entity, days, row).await
    }

    /// Sends a file to `POST /upload/{directory}`, read and hashed as it goes.
    ///
    /// # Errors
    /// Beside the cloud's: [`Kind::Media`] where the file cannot be read, changed meanwhile, or arrived with another
    /// content hash.
    pub async fn upload(&self, directory: &str, file: UploadFile) -> CloudResult<UploadReceipt> {
        files::upload(&self.inner.link, &self.inner.upload, directory, file).await
    }

    /// The URL of the content with this hash, where the cloud already has it: `HEAD
    /// /upload/{directory}?hash=…`. Only where `content-hash` is listed.
    pub async fn find_content(&self, directory: &str, hash: &blake3::Hash) -> CloudResult<Option<String>> {
        files::find(&self.inner.link, directory, hash).await
    }

    /// The API's base URL.
    pub fn url(&self) -> &str {
        self.inner.link.base()
    }

    /// How long a request may take, beside the time that its body needs.
    pub fn timeout(&self) -> Duration {
        self.inner.link.timeout()
    }

    /// The catalogue whose entities it delivers.
    pub fn catalogue(&self) -> &Catalogue {
        &self.inner.catalogue
    }

    fn entity(&self, entity: EntityIndex) -> &Entity {
        &self.inner.catalogue[entity]
    }

    /// A key of the site, a JSON object, as the cloud has it: with its names and in its forms. One that has
    /// no such form stays.
    pub fn cloud_key_of<'k>(&self, entity: EntityIndex, key: &'k str) -> Cow<'k, str> {
        match self.form(entity).map(|form| form.shape(key)) {
            Some(Ok(key)) => Cow::Owned(key),
            _ => Cow::Borrowed(key),
        }
    }

    /// Whether a row that belongs to another entity of its table now is deleted under the old path.
    pub fn deletes_moved(&self) -> bool {
        self.inner.delete_moved
    }

    fn form(&self, entity: EntityIndex) -> Option<&RowForm> {
        self.inner.forms[entity.0].as_ref()
    }

    fn bulk_rows(&self, entity: EntityIndex) -> &AtomicUsize {
        &self.inner.bulk_rows[entity.0]
    }

    /// Notes whether a bulk request was taken as a whole. Where rows are left out, they are found by sending
    /// the others again: the fewer go together, the less that is.
    fn note_bulk(&self, entity: EntityIndex, whole: bool) {
        let rows = self.bulk_rows(entity);
        let now = rows.load(Ordering::Relaxed);
        let next = if whole {
            (now * 2).min(BULK_ROWS)
        } else {
            (now / 4).max(1)
        };
        rows.store(next, Ordering::Relaxed);
    }

    /// What a delivery of these changes is called in messages.
    fn operation(&self, batch: &Batch, places: &[ChangeIndex]) -> String {
        let mut entities = places.iter().map(|&change_index| batch[change_index].entity);
        match entities.next() {
            Some(first) if entities.all(|other| other == first) => self.pushing(first),
            _ => "push changes to the cloud".to_owned(),
        }
    }

    fn pushing(&self, entity: EntityIndex) -> String {
        format!("push {} to the cloud", self.entity(entity).name)
    }

    fn request_bytes(&self) -> usize {
        let stride = self.inner.stride.load(Ordering::Relaxed);
        self.inner.request_bytes.load(Ordering::Relaxed).min(stride)
    }

    /// Notes what became of a request of this many bytes of text. A link that drops every minute would never
    /// see the end of a request that takes longer: each that breaks off under way halves the next ones, and
    /// each that gets through doubles them again.
    fn went<T>(&self, bytes: usize, outcome: &CloudResult<T>) {
        let stride = &self.inner.stride;
        let now = stride.load(Ordering::Relaxed);
        match outcome {
            Err(failure) if failure.was_under_way() => {
                stride.store(now.min((bytes / 2).max(SMALLEST_REQUEST)), Ordering::Relaxed);
            }
            // A short one that got through says nothing about a long one.
            Ok(_) if bytes >= now / 2 => stride.store(now.saturating_mul(2), Ordering::Relaxed),
            _ => {}
        }
    }

    /// Notes an answer to changes: see [`PipelineDepth::answered`].
    fn answered(&self, begun: tokio::time::Instant, alone: bool, applied: Option<Duration>) {
        self.lock_depth().answered(begun, alone, applied);
    }

    fn lock_depth(&self) -> MutexGuard<'_, PipelineDepth> {
        self.inner.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the server found a request of this many bytes of text too long.
    fn too_long(&self, bytes: usize) {
        let fits = (bytes / 2).max(SMALLEST_REQUEST);
        self.inner.request_bytes.fetch_min(fits, Ordering::Relaxed);
    }
}

/// Cuts a run of changes into pieces of at most `limit` bytes, or of one change.
fn split_by_bytes(
    places: &[ChangeIndex],
    limit: usize,
    bytes: impl Fn(ChangeIndex) -> usize,
) -> Vec<&[ChangeIndex]> {
    let mut pieces = Vec::new();
    let (mut start, mut sum) = (0, 0_usize);
    for (at, &change_index) in places.iter().enumerate() {
        let more = bytes(change_index);
        if at > start && sum.saturating_add(more) > limit {
            pieces.push(&places[start..at]);
            (start, sum) = (at, 0);
        }
        sum = sum.saturating_add(more);
    }
    if start < places.len() {
        pieces.push(&places[start..]);
    }
    pieces
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
