//! Group commit for uploads: renames finished files into place in groups, with one sync for each folder and
//! one `insert` for each group.
//!
//! Always holds: a file is confirmed when its content is on disk, its name in the folder is on disk, and its
//! record is committed.
//!
//! Files that arrive while a group is being stored form the next group. The first of them stores the group
//! for all; if its caller goes away, the group is stored all the same.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use sqlx::{PgPool, Row};
use tempfile::NamedTempFile;
use tokio::sync::{Semaphore, oneshot};

use crate::receiver::http::api_error::{ApiError, ApiResult};

/// Groups in progress at once: the next group is renamed while the records of the one before are written.
const GROUPS: usize = 3;

/// Files in a group, at most.
const GROUP: usize = 256;

/// The operation that fails, for messages.
const STORE: &str = "store a file";

/// A file whose content is on disk, to be renamed into the folder of its site and directory.
pub(crate) struct FinishedUpload {
    pub(crate) file: NamedTempFile,
    pub(crate) site: String,
    pub(crate) directory: String,
    /// Its name in that folder.
    pub(crate) stored: String,
    pub(crate) hash: String,
    /// The name that its sender gave it, made safe.
    pub(crate) name: String,
    pub(crate) size: u64,
}

struct WaitingUpload {
    upload: FinishedUpload,
    answer: oneshot::Sender<ApiResult<()>>,
}

/// The files' folder and their records.
#[derive(Clone)]
pub(crate) struct GroupCommit {
    pool: PgPool,
    root: PathBuf,
    waiting: Arc<Mutex<Vec<WaitingUpload>>>,
    groups: Arc<Semaphore>,
}

impl GroupCommit {
    pub(crate) fn new(pool: PgPool, root: PathBuf) -> Self {
        Self {
            pool,
            root,
            waiting: Arc::default(),
            groups: Arc::new(Semaphore::new(GROUPS)),
        }
    }

    /// Stores a file durably. The same content under the same name is stored once.
    pub(crate) async fn store(&self, upload: FinishedUpload) -> ApiResult<()> {
        let (answer, mut answered) = oneshot::channel();
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(WaitingUpload { upload, answer });
        let lost = |_| ApiError::later("the file was not stored");
        loop {
            let permit = tokio::select! {
                biased;
                answer = &mut answered => return answer.map_err(lost)?,
                permit = Arc::clone(&self.groups).acquire_owned() => permit,
            };
            let permit = permit.map_err(|error| ApiError::fault(STORE, error))?;
            let (group, is_last) = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let length = waiting.len().min(GROUP);
                let group: Vec<_> = waiting.drain(..length).collect();
                (group, waiting.is_empty())
            };
            if !group.is_empty() {
                let commit = self.clone();
                tokio::spawn(async move {
                    commit.store_and_answer(group).await;
                    drop(permit);
                });
            }
            // This file is in a group that somebody has taken; else it still waits behind this group.
            if is_last {
                return answered.await.map_err(lost)?;
            }
        }
    }

    async fn store_and_answer(&self, group: Vec<WaitingUpload>) {
        let (uploads, answers): (Vec<_>, Vec<_>) = group
            .into_iter()
            .map(|waiting| (waiting.upload, waiting.answer))
            .unzip();
        // A caller that has gone does not listen.
        match self.store_group(uploads).await {
            Ok(outcomes) => {
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone().into_later()));
                }
            }
        }
    }

    /// Returns what became of each file.
    async fn store_group(&self, uploads: Vec<FinishedUpload>) -> ApiResult<Vec<ApiResult<()>>> {
        let column = |field: fn(&FinishedUpload) -> &str| {
            uploads
                .iter()
                .map(|upload| field(upload).to_owned())
                .collect::<Vec<_>>()
        };
        let (sites, directories) = (column(|upload| &upload.site), column(|upload| &upload.directory));
        let (stored, hashes) = (column(|upload| &upload.stored), column(|upload| &upload.hash));
        let names = column(|upload| &upload.name);
        let sizes: Vec<i64> = uploads
            .iter()
            .map(|upload| i64::try_from(upload.size).unwrap_or(i64::MAX))
            .collect();
        // Other content under the same name is refused: the name has only 64 bits of the hash.
        let recorded = sqlx::query(
            "select n.nth, f.hash \
             from unnest($1::text[], $2::text[], $3::text[]) with ordinality n (site, directory, stored, nth) \
             join cloud_meta.files f using (site, directory, stored)",
        )
        .bind(&sites)
        .bind(&directories)
        .bind(&stored)
        .fetch_all(&self.pool)
        .await?;
        let mut in_group: HashMap<(&str, &str, &str), &str> = HashMap::new();
        let mut refused: Vec<bool> = uploads
            .iter()
            .map(|upload| {
                let name = (&*upload.site, &*upload.directory, &*upload.stored);
                *in_group.entry(name).or_insert(&upload.hash) != upload.hash
            })
            .collect();
        for row in recorded {
            let upload_index = usize::try_from(row.try_get::<i64, _>(0)? - 1).unwrap_or(usize::MAX);
            if let (Some(refused), Some(hash)) = (refused.get_mut(upload_index), hashes.get(upload_index)) {
                *refused |= row.try_get::<&str, _>(1)? != hash;
            }
        }
        let root = self.root.clone();
        let rename = move || rename_all(&root, uploads, &refused);
        let mut outcomes = tokio::task::spawn_blocking(rename)
            .await
            .map_err(|error| ApiError::fault(STORE, error))?;
        let renamed: Vec<i64> = (1_i64..)
            .zip(&outcomes)
            .filter_map(|(number, outcome)| outcome.is_ok().then_some(number))
            .collect();
        if renamed.is_empty() {
            return Ok(outcomes);
        }
        let recorded = sqlx::query(
            "insert into cloud_meta.files (site, directory, stored, hash, name, size) \
             select site, directory, stored, hash, name, size \
             from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[]) \
                  with ordinality n (site, directory, stored, hash, name, size, nth) \
             where nth = any($7) order by 1, 2, 3 on conflict (site, directory, stored) do nothing",
        )
        .bind(&sites)
        .bind(&directories)
        .bind(&stored)
        .bind(&hashes)
        .bind(&names)
        .bind(&sizes)
        .bind(&renamed)
        .execute(&self.pool)
        .await;
        if let Err(error) = recorded {
            let error = ApiError::from(error).into_later();
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                *outcome = Err(error.clone());
            }
        }
        Ok(outcomes)
    }
}

/// Renames the files into place, except the refused ones, and then makes their folders durable.
fn rename_all(root: &Path, uploads: Vec<FinishedUpload>, refused: &[bool]) -> Vec<ApiResult<()>> {
    let mut folders = BTreeSet::new();
    let mut outcomes: Vec<(Option<PathBuf>, ApiResult<()>)> = Vec::with_capacity(uploads.len());
    for (upload, refused) in uploads.into_iter().zip(refused) {
        if *refused {
            let conflict = ApiError::new(
                StatusCode::CONFLICT,
                "another file has this name and the same first part of its hash",
            );
            outcomes.push((None, Err(conflict)));
            continue;
        }
        let folder = root.join(&upload.site).join(&upload.directory);
        let checked = folders.contains(&folder);
        match rename_into_place(upload.file, &folder, &upload.stored, checked) {
            Ok(()) => {
                folders.insert(folder.clone());
                outcomes.push((Some(folder), Ok(())));
            }
            Err(error) => outcomes.push((None, Err(storage_error(error)))),
        }
    }
    for folder in folders {
        if let Err(error) = std::fs::File::open(&folder).and_then(|folder| folder.sync_all()) {
            let error = storage_error(error);
            for (used_folder, outcome) in &mut outcomes {
                if used_folder.as_ref() == Some(&folder) {
                    *outcome = Err(error.clone());
                }
            }
        }
    }
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Renames a file into its folder, which is made if it does not exist.
fn rename_into_place(file: NamedTempFile, folder: &Path, stored: &str, checked: bool) -> io::Result<()> {
    if !checked {
        std::fs::create_dir_all(folder)?;
        // The files' root is free of links; one below it would lead out of it.
        if folder.canonicalize()? != folder {
            return Err(io::Error::other(format!(
                "{} is a link, and nothing is stored or served through one",
                folder.display()
            )));
        }
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o640))?;
    }
    file.persist(folder.join(stored)).map_err(|error| error.error)?;
    Ok(())
}

/// The answer to an error of the disk that holds the files.
pub(crate) fn storage_error(error: io::Error) -> ApiError {
    if error.kind() == io::ErrorKind::StorageFull {
        return ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "the disk is full").caused_by(error);
    }
    ApiError::fault(STORE, error)
}
