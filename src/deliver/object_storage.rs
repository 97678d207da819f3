//! Files into an object storage: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage, or a
//! folder.
//!
//! - A file's key is `<prefix>/<source>/<directory>/<hash>.<ending>`. So one key has one content for ever: a file
//!   that was renamed or copied is there already, and nothing is ever overwritten with another content.
//! - A small file goes in one request, a larger one in parts of equal size ([`parts`]); a few of them are in
//!   memory at most, whatever the number of uploads ([`MEMORY`]).
//! - Each request may take as long as bytes go: only one that stalls is given up.
//! - Failure: whether a file is there is decided by asking for its size, also when the answer to the last request
//!   was lost.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig,
};
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::failure::{CloudResult, Failure};
use super::files::{UploadFile, UploadReceipt};
use super::resumable::ResumableUpload;
use crate::error::{Error, Kind, Result, chain};

mod parts;

/// Bytes of files in memory at most, in units of [`UNIT`].
const MEMORY: usize = 10 * 1024 * 1024 / UNIT;

/// Buffers of more bytes are used again.
const REUSED_FROM: usize = 1024 * 1024;

/// The unit in which memory is counted.
const UNIT: usize = 64 * 1024;

/// A file of at most so many bytes goes in one request.
const ONE_REQUEST: u64 = 5 * 1024 * 1024;

/// A request of which nothing moves for so long is given up.
const STALLED: Duration = Duration::from_secs(60);

/// The slowest line that a part may take, in bytes a second.
const SLOWEST: u64 = 8 * 1024;

/// Which object storage, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageKind {
    /// S3, or a server that speaks like it at `endpoint`. Credentials come from the environment
    /// (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, or the machine's role).
    S3,
    /// Google Cloud Storage. Credentials come from the environment (`GOOGLE_SERVICE_ACCOUNT`, or the machine's).
    Gcs,
    /// Azure Blob Storage. Credentials come from the environment (`AZURE_STORAGE_ACCOUNT_NAME`,
    /// `AZURE_STORAGE_ACCOUNT_KEY`, or the machine's).
    Azure,
    /// A folder, such as a mounted share.
    File,
}

/// How an object storage is reached.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// Which one.
    pub kind: StorageKind,
    /// The bucket, the container, or the folder.
    pub bucket: String,
    /// What each key begins with; may be empty.
    pub prefix: String,
    /// The server's URL, where it is not the provider's own.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// The access key of S3 or the account of Azure, and its secret; if they are not given, the environment's.
    pub credentials: Option<(String, SecretString)>,
    /// What the URLs of files begin with; if it is not set, they are like `s3://bucket/key`.
    pub public_url: Option<String>,
    /// How long a file's URL holds, which the storage signs then; `None` if URLs are not signed.
    pub url_valid: Option<Duration>,
}

/// An object storage.
#[derive(Clone)]
pub struct ObjectStorage {
    store: Arc<dyn ObjectStore>,
    /// The same where an upload in parts goes on after an interruption: the parts that are there keep their
    /// names.
    resumable: Option<Arc<dyn MultipartStore>>,
    /// Whether objects have attributes: files in a folder have none.
    has_attributes: bool,
    prefix: String,
    url: String,
    /// Who signs the URLs of files, and for how long.
    signer: Option<(Arc<dyn Signer>, Duration)>,
    memory: Arc<Semaphore>,
    free_buffers: FreeBuffers,
}

impl ObjectStorage {
    /// Prepares the client. Nothing is asked yet.
    ///
    /// # Errors
    /// A configuration error.
    pub fn new(options: &StorageOptions) -> Result<Self> {
        let bucket = &options.bucket;
        let mut resumable: Option<Arc<dyn MultipartStore>> = None;
        let mut signer: Option<Arc<dyn Signer>> = None;
        let (store, scheme): (Arc<dyn ObjectStore>, _) = match options.kind {
            StorageKind::S3 => {
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(client())
                    .with_retry(retries());
                if let Some(endpoint) = &options.endpoint {
                    builder = builder
                        .with_endpoint(endpoint)
                        .with_allow_http(is_plain(endpoint));
                }
                if let Some((key, secret)) = &options.credentials {
                    builder = builder
                        .with_access_key_id(key)
                        .with_secret_access_key(secret.expose_secret());
                }
                if let Some(region) = &options.region {
                    builder = builder.with_region(region);
                }
                let store = Arc::new(builder.build().map_err(|error| unusable(&error))?);
                resumable = Some(store.clone());
                signer = Some(store.clone());
                (store, "s3")
            }
            StorageKind::Gcs => {
                let mut builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(client())
                    .with_retry(retries());
                if let Some(endpoint) = &options.endpoint {
                    builder = builder.with_base_url(endpoint);
                }
                let store = Arc::new(builder.build().map_err(|error| unusable(&error))?);
                resumable = Some(store.clone());
                signer = Some(store.clone());
                (store, "gs")
            }
            StorageKind::Azure => {
                let mut builder = MicrosoftAzureBuilder::from_env()
                    .with_container_name(bucket)
                    .with_client_options(client())
                    .with_retry(retries());
                if let Some((account, key)) = &options.credentials {
                    builder = builder.with_account(account).with_access_key(key.expose_secret());
                }
                if let Some(endpoint) = &options.endpoint {
                    builder = builder
                        .with_endpoint(endpoint.clone())
                        .with_allow_http(is_plain(endpoint));
                }
                let store = Arc::new(builder.build().map_err(|error| unusable(&error))?);
                signer = Some(store.clone());
                (store, "az")
            }
            StorageKind::File => {
                let folder = FilePath::new(bucket);
                std::fs::create_dir_all(folder)
                    .and_then(|()| folder.canonicalize())
                    .map_err(|error| Error::local(format!("use the folder {bucket} for files"), error))?;
                let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| unusable(&error))?;
                (Arc::new(store.with_fsync(true)), "file")
            }
        };
        let url = match &options.public_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("{scheme}://{}", bucket.trim_end_matches('/')),
        };
        let signer = match (options.url_valid, signer) {
            (None, _) => None,
            (Some(valid), Some(signer)) => Some((signer, valid)),
            (Some(_), None) => {
                return Err(Error::config("sign the URLs of files", "a folder signs no URLs")
                    .remedy("remove files.url_valid"));
            }
        };
        Ok(Self {
            store,
            resumable,
            signer,
            has_attributes: options.kind != StorageKind::File,
            prefix: options.prefix.trim_matches('/').to_owned(),
            url,
            memory: Arc::new(Semaphore::new(MEMORY)),
            free_buffers: FreeBuffers::default(),
        })
    }

    /// Asks for an object that is not there: whether the storage is reached and takes the credentials.
    pub async fn check(&self) -> CloudResult<()> {
        let key = Path::from(format!("{}/cloud-sync-check", self.prefix));
        self.has("ask the object storage", &key, 0).await.map(drop)
    }

    /// What the URLs of its files begin with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether a file of this size goes on where it was after an interruption.
    pub fn resumes(&self, size: u64) -> bool {
        self.resumable.is_some() && size > ONE_REQUEST
    }

    /// Brings a file of this size there, unless it is there.
    pub async fn upload(
        &self,
        source: &str,
        size: u64,
        upload: &ResumableUpload<'_>,
    ) -> CloudResult<UploadReceipt> {
        let ResumableUpload {
            directory,
            file,
            hash,
            ..
        } = upload;
        let operation = format!("upload {} to {directory}", file.name);
        let key = self.key(source, directory, &file.name, hash);
        let receipt = async |bytes| {
            Ok(UploadReceipt {
                url: self.url_of(&operation, &key).await?,
                path: Some(key.to_string()),
                hash: *hash,
                bytes,
                confirmed: true,
            })
        };
        if self.has(&operation, &key, size).await? {
            return receipt(0).await;
        }
        let sent = match &self.resumable {
            _ if size <= ONE_REQUEST => self.send_whole(&operation, &key, file, size, hash).await,
            Some(store) => {
                let parts = parts::UploadInParts {
                    storage: self,
                    store: store.as_ref(),
                    operation: &operation,
                    key: &key,
                    upload,
                    size,
                };
                parts.send().await
            }
            None => parts::send_at_once(self, &operation, &key, upload, size).await,
        };
        // An answer may have been lost: what is there counts.
        match (sent, self.has(&operation, &key, size).await) {
            (Ok(()) | Err(_), Ok(true)) => receipt(size).await,
            (Ok(()), Ok(false)) => Err(Failure::protocol(
                &operation,
                "the storage does not have the file that it has just taken",
                "look at its own logs, and at rules of the bucket that remove objects",
            )),
            (Err(failure), _) | (Ok(()), Err(failure)) => Err(failure),
        }
    }

    /// Removes the parts of an upload that has begun at this address and is of no use any more.
    pub async fn end_upload(&self, address: &str) -> CloudResult<()> {
        let (Some(store), Some((key, id))) = (&self.resumable, parts::in_address(&self.url, address)) else {
            return Ok(());
        };
        let operation = "end an upload";
        match within(operation, 0, store.abort_multipart(&key, &id)).await? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(operation, error)),
        }
    }

    /// The URL of a content of this size and hash, if it is there under the ending of `name`.
    pub async fn find(
        &self,
        source: &str,
        directory: &str,
        name: &str,
        size: u64,
        hash: &blake3::Hash,
    ) -> CloudResult<Option<String>> {
        let operation = format!("ask the object storage for a file's content in {directory}");
        let key = self.key(source, directory, name, hash);
        match self.has(&operation, &key, size).await? {
            true => self.url_of(&operation, &key).await.map(Some),
            false => Ok(None),
        }
    }

    /// The URL of an object: signed, or made of what URLs begin with.
    async fn url_of(&self, operation: &str, key: &Path) -> CloudResult<String> {
        let Some((signer, valid)) = &self.signer else {
            return Ok(format!("{}/{key}", self.url));
        };
        let signed = signer.signed_url(Method::GET, key, *valid);
        match within(operation, 0, signed).await? {
            Ok(url) => Ok(url.into()),
            Err(error) => Err(failed(operation, error)),
        }
    }

    /// Whether its URLs hold for a time only.
    pub fn signs_urls(&self) -> bool {
        self.signer.is_some()
    }

    /// `<prefix>/<source>/<directory>/<hash>.<ending>`.
    fn key(&self, source: &str, directory: &str, name: &str, hash: &blake3::Hash) -> Path {
        let ending = name
            .rsplit_once('.')
            .map(|(_, ending)| ending.to_ascii_lowercase());
        let ending = ending.filter(|ending| {
            (1..=16).contains(&ending.len()) && ending.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        let file = match ending {
            Some(ending) => format!("{}.{ending}", hash.to_hex()),
            None => hash.to_hex().to_string(),
        };
        let folders = self.prefix.split('/').filter(|part| !part.is_empty());
        folders.chain([source, directory, file.as_str()]).collect()
    }

    /// Whether the object is there, with this size.
    async fn has(&self, operation: &str, key: &Path, size: u64) -> CloudResult<bool> {
        match within(operation, 0, self.store.head(key)).await? {
            Ok(found) => Ok(found.size == size),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failed(operation, error)),
        }
    }

    async fn send_whole(
        &self,
        operation: &str,
        key: &Path,
        file: &UploadFile,
        size: u64,
        hash: &blake3::Hash,
    ) -> CloudResult<()> {
        let _room = self.room(size).await;
        let buffer = PartBuffer::new(size, &self.free_buffers);
        let content = read(operation, file.file.clone(), 0, buffer).await?;
        if blake3::hash(&content) != *hash {
            return Err(changed(operation));
        }
        pace(file, content.len()).await;
        let payload = PutPayload::from_bytes(content);
        let put = |mode| PutOptions {
            mode,
            attributes: self.attributes(&file.name),
            ..PutOptions::default()
        };
        let create = self.store.put_opts(key, payload.clone(), put(PutMode::Create));
        match within(operation, size, create).await? {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            // A server that has no conditions: the key has this content only.
            Err(
                object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. }
                | object_store::Error::Precondition { .. },
            ) => {
                let overwrite = self.store.put_opts(key, payload, put(PutMode::Overwrite));
                let done = within(operation, size, overwrite).await?;
                done.map(drop).map_err(|error| failed(operation, error))
            }
            Err(error) => Err(failed(operation, error)),
        }
    }

    fn attributes(&self, name: &str) -> Attributes {
        let mut attributes = Attributes::new();
        if self.has_attributes {
            let kind = mime_guess::from_path(name).first_or_octet_stream();
            attributes.insert(Attribute::ContentType, kind.essence_str().to_owned().into());
        }
        attributes
    }

    /// Room in memory for so many bytes.
    async fn room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = usize::try_from(bytes.div_ceil(UNIT as u64))
            .unwrap_or(MEMORY)
            .min(MEMORY);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        self.memory.clone().acquire_many_owned(units).await.ok()
    }
}

/// Reads so many bytes at an offset, on a thread of its own.
async fn read(operation: &str, file: Arc<File>, offset: u64, buffer: PartBuffer) -> CloudResult<Bytes> {
    let read = tokio::task::spawn_blocking(move || {
        let mut buffer = buffer;
        file.read_exact_at(&mut buffer.bytes, offset)?;
        Ok::<_, io::Error>(Bytes::from_owner(buffer))
    });
    let read = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    read.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => changed(operation),
        _ => Failure::new(Kind::Media, operation, error.to_string()),
    })
}

/// Buffers of parts that were sent, to be filled again: freed memory of this size is not given back to the system by
/// each allocator.
type FreeBuffers = Arc<Mutex<Vec<Vec<u8>>>>;

/// The bytes of a part, or of a small file. Those of a part are used again.
struct PartBuffer {
    bytes: Vec<u8>,
    free: FreeBuffers,
}

impl PartBuffer {
    fn new(length: u64, free: &FreeBuffers) -> Self {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let is_part = length > REUSED_FROM;
        let used = is_part.then(|| lock(free).pop()).flatten();
        let mut bytes = used.unwrap_or_default();
        bytes.resize(length, 0);
        Self {
            bytes,
            free: free.clone(),
        }
    }
}

impl AsRef<[u8]> for PartBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PartBuffer {
    fn drop(&mut self) {
        let mut free = lock(&self.free);
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if self.bytes.capacity() > REUSED_FROM && kept + self.bytes.capacity() <= MEMORY * UNIT {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

fn lock(free: &FreeBuffers) -> MutexGuard<'_, Vec<Vec<u8>>> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits as the file's throttle asks.
async fn pace(file: &UploadFile, bytes: usize) {
    let Some(pace) = &file.pace else { return };
    let mut wait = pace(bytes);
    while !wait.is_zero() {
        tokio::time::sleep(wait).await;
        wait = pace(0);
    }
}

/// A request with so many bytes, or the failure that it takes too long.
async fn within<T>(operation: &str, bytes: u64, request: impl Future<Output = T>) -> CloudResult<T> {
    let limit = STALLED + Duration::from_secs(bytes / SLOWEST);
    let answered = tokio::time::timeout(limit, request).await;
    answered.map_err(|_| {
        Failure::unreachable(
            operation,
            format!("no answer within {} s", limit.as_secs()),
            "check the network between here and the object storage",
        )
    })
}

fn changed(operation: &str) -> Failure {
    Failure::new(Kind::Media, operation, "it changed while it was sent")
}

fn failed(operation: &str, error: object_store::Error) -> Failure {
    use object_store::Error as Storage;
    let (kind, remedy) = match &error {
        Storage::PermissionDenied { .. } | Storage::Unauthenticated { .. } => (
            Kind::CloudAuth,
            "check the storage's credentials in the environment, and what they may do with the bucket",
        ),
        Storage::NotFound { .. } => (Kind::CloudUnreachable, "check files.bucket and files.endpoint"),
        _ => (
            Kind::CloudUnreachable,
            "it is tried again; check files.endpoint, and the network between here and the object storage",
        ),
    };
    Failure::from(Error::new(kind, operation, chain(&error)).remedy(remedy))
}

fn unusable(error: &object_store::Error) -> Error {
    Error::config("use the object storage", chain(error))
        .remedy("check files.driver, files.bucket, files.endpoint and the credentials in the environment")
}

fn is_plain(endpoint: &str) -> bool {
    endpoint.starts_with("http://")
}

/// Only a request that stalls is given up, and that is seen here: see [`within`].
fn client() -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(10))
}

/// Few and soon: what fails longer is the file lane's to try again.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(120),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, ObjectStorage) {
        let folder = tempfile::tempdir().unwrap();
        let storage = ObjectStorage::new(&StorageOptions {
            kind: StorageKind::File,
            bucket: folder.path().join("bucket").display().to_string(),
            prefix: "/media/".into(),
            endpoint: None,
            region: None,
            credentials: None,
            public_url: Some("https://files.example/".into()),
            url_valid: None,
        });
        (folder, storage.unwrap())
    }

    #[test]
    fn a_key_is_made_of_the_content() {
        let (_folder, storage) = folder();
        let hash = blake3::hash(b"slip");
        let key = |name| storage.key("college", "leave_slips", name, &hash).to_string();
        let of = |ending: &str| format!("media/college/leave_slips/{}{ending}", hash.to_hex());
        assert_eq!(key("a.JPG"), of(".jpg"));
        assert_eq!(key("no ending"), of(""));
        assert_eq!(key("odd.en/ding"), of(""));
    }
}
