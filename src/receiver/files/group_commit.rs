//! Puts files that are whole and on disk in their places, as many at once as have come meanwhile: one sync of each folder
//! and one statement do for all of them.
//!
//! A file is confirmed when its name in the folder is on disk too and its record is committed. Whoever is first puts the
//! others' files in their places as well; when a caller has gone, its group is put all the same.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::{PgPool, Row};
use tempfile::NamedTempFile;
use tokio::sync::{Semaphore, oneshot};

use crate::receiver::http::api_error::{ApiError, ApiResult};

/// Groups under way at once: the next one is put while the one before is written down.
const GROUPS: usize = 3;

/// Files in a group, at most.
const GROUP: usize = 256;

/// A file to put in its place, below the folders of its site and directory.
pub(crate) struct FinishedUpload {
    pub(crate) file: NamedTempFile,
    pub(crate) site: String,
    pub(crate) directory: String,
    /// Its name there.
    pub(crate) stored: String,
    pub(crate) hash: String,
    /// Its name where it comes from, made safe.
    pub(crate) name: String,
    pub(crate) size: u64,
}

struct WaitingUpload {
    whole: FinishedUpload,
    answer: oneshot::Sender<ApiResult<()>>,
}

/// The files' folder and their records.
#[derive(Clone)]
pub(crate) struct GroupCommit {
    pool: PgPool,
    root: PathBuf,
    arrived: Arc<Mutex<Vec<WaitingUpload>>>,
    groups: Arc<Semaphore>,
}

impl GroupCommit {
    pub(crate) fn new(pool: PgPool, root: PathBuf) -> Self {
        Self {
            pool,
            root,
            arrived: Arc::default(),
            groups: Arc::new(Semaphore::new(GROUPS)),
        }
    }

    /// Puts the file in its place, durably. The same content under the same name is there once.
    pub(crate) async fn put(&self, whole: FinishedUpload) -> ApiResult<()> {
        let (answer, mut answered) = oneshot::channel();
        self.arrived
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(WaitingUpload { whole, answer });
        let gone = |_| ApiError::later("the file was not put in its place");
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut answered => return answer.map_err(gone)?,
                turn = Arc::clone(&self.groups).acquire_owned() => turn,
            };
            let turn = turn.map_err(|error| ApiError::fault("store a file", &error))?;
            let (group, all) = {
                let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
                let first = arrived.len().min(GROUP);
                let group: Vec<_> = arrived.drain(..first).collect();
                (group, arrived.is_empty())
            };
            if !group.is_empty() {
                let shelf = self.clone();
                tokio::spawn(async move {
                    shelf.put_group(group).await;
                    drop(turn);
                });
            }
            // Its own file is among those that somebody has taken, or still waits behind this group.
            if all {
                return answered.await.map_err(gone)?;
            }
        }
    }

    async fn put_group(&self, group: Vec<WaitingUpload>) {
        let (wholes, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|one| (one.whole, one.answer)).unzip();
        let ends = self.try_group(wholes, answers.len()).await;
        match ends {
            Ok(ends) => {
                for (answer, end) in answers.into_iter().zip(ends) {
                    // Nobody listens where the client has gone.
                    let _ = answer.send(end);
                }
            }
            Err(refusal) => {
                for answer in answers {
                    let _ = answer.send(Err(ApiError::later(refusal.words())));
                }
            }
        }
    }

    /// What became of each file.
    async fn try_group(&self, wholes: Vec<FinishedUpload>, count: usize) -> ApiResult<Vec<ApiResult<()>>> {
        let column =
            |of: fn(&FinishedUpload) -> &str| wholes.iter().map(|one| of(one).to_owned()).collect::<Vec<_>>();
        let (sites, directories) = (column(|one| &one.site), column(|one| &one.directory));
        let (stored, hashes) = (column(|one| &one.stored), column(|one| &one.hash));
        let names = column(|one| &one.name);
        let sizes: Vec<i64> = wholes
            .iter()
            .map(|one| i64::try_from(one.size).unwrap_or(i64::MAX))
            .collect();
        // Other content under the same name is refused: the name has 64 bits of the hash only.
        let known = sqlx::query(
            "select n.nth, f.hash from unnest($1::text[], $2::text[], $3::text[]) with ordinality n (site, directory, stored, nth) \
             join cloud_meta.files f using (site, directory, stored)",
        )
        .bind(&sites)
        .bind(&directories)
        .bind(&stored)
        .fetch_all(&self.pool)
        .await?;
        let mut refused = vec![false; count];
        let mut beside: HashMap<(&str, &str, &str), &str> = HashMap::new();
        for (nth, one) in wholes.iter().enumerate() {
            let place = (one.site.as_str(), one.directory.as_str(), one.stored.as_str());
            refused[nth] = *beside.entry(place).or_insert(&one.hash) != one.hash;
        }
        for row in known {
            let nth = usize::try_from(row.try_get::<i64, _>(0)? - 1).unwrap_or(usize::MAX);
            if let (Some(refused), Some(hash)) = (refused.get_mut(nth), hashes.get(nth)) {
                *refused |= row.try_get::<&str, _>(1)? != hash;
            }
        }
        let root = self.root.clone();
        let put = move || place_all(&root, wholes, &refused);
        let mut ends = tokio::task::spawn_blocking(put)
            .await
            .map_err(|error| ApiError::fault("store files", &error))?;
        let there: Vec<i64> = (0_i64..)
            .zip(&ends)
            .filter_map(|(nth, end)| end.is_ok().then_some(nth + 1))
            .collect();
        if there.is_empty() {
            return Ok(ends);
        }
        let written = sqlx::query(
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
        .bind(&there)
        .execute(&self.pool)
        .await;
        if let Err(error) = written {
            let refusal = ApiError::from(error);
            for end in ends.iter_mut().filter(|end| end.is_ok()) {
                *end = Err(ApiError::later(refusal.words()));
            }
        }
        Ok(ends)
    }
}

/// Renames the files into their places, but the refused ones, and then makes their folders durable.
fn place_all(root: &Path, wholes: Vec<FinishedUpload>, refused: &[bool]) -> Vec<ApiResult<()>> {
    let mut folders = BTreeSet::new();
    let mut ends: Vec<(Option<PathBuf>, ApiResult<()>)> = Vec::with_capacity(wholes.len());
    for (one, refused) in wholes.into_iter().zip(refused) {
        if *refused {
            let conflict = ApiError::new(
                axum::http::StatusCode::CONFLICT,
                "another file has this name and the same first part of its hash",
            );
            ends.push((None, Err(conflict)));
            continue;
        }
        let folder = root.join(&one.site).join(&one.directory);
        let checked = folders.contains(&folder);
        match move_into_place(one.file, &folder, &one.stored, checked) {
            Ok(()) => {
                folders.insert(folder.clone());
                ends.push((Some(folder), Ok(())));
            }
            Err(error) => ends.push((None, Err(disk(&error)))),
        }
    }
    for folder in folders {
        if let Err(error) = std::fs::File::open(&folder).and_then(|folder| folder.sync_all()) {
            for (of, end) in &mut ends {
                if of.as_ref() == Some(&folder) {
                    *end = Err(disk(&error));
                }
            }
        }
    }
    ends.into_iter().map(|(_, end)| end).collect()
}

/// Renames a file into its folder, which is made where it is not there.
fn move_into_place(file: NamedTempFile, folder: &Path, stored: &str, checked: bool) -> std::io::Result<()> {
    if !checked {
        std::fs::create_dir_all(folder)?;
        // The files' root is free of links; one below it would lead out of it.
        if folder.canonicalize()? != folder {
            return Err(std::io::Error::other(format!(
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

/// What an error of the files' disk is answered.
pub(crate) fn disk(error: &std::io::Error) -> ApiError {
    if error.kind() == std::io::ErrorKind::StorageFull {
        tracing::error!("the disk of the files is full");
        return ApiError::new(axum::http::StatusCode::INSUFFICIENT_STORAGE, "the disk is full");
    }
    ApiError::fault("store a file", error)
}
