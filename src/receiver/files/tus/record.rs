//! The rows of uploads: `cloud_meta.uploads`.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};

use super::request::NewUpload;
use crate::receiver::Shared;
use crate::receiver::files::upload::INCOMING;
use crate::receiver::http::api_error::{ApiError, ApiResult};

/// An upload.
#[derive(Debug, Clone)]
pub(super) struct UploadRecord {
    pub(super) id: String,
    pub(super) site: String,
    pub(super) directory: String,
    pub(super) name: String,
    pub(super) length: u64,
    /// Bytes that are on disk, as far as it was noted.
    pub(super) received: u64,
    /// The request that noted it.
    pub(super) writer: Option<String>,
    pub(super) announced_hash: Option<String>,
    pub(super) metadata: Option<String>,
    /// Name and hash of the complete file.
    pub(super) stored: Option<(String, String)>,
    pub(super) expires_at: Timestamp,
}

const COLUMNS: &str = "id, site, directory, name, length, received, writer, announced_hash, metadata, stored, \
     hash, extract(epoch from expires_at)::float8 as expires_at";

impl UploadRecord {
    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        let bytes = |column: &str| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
        let stored: Option<String> = row.try_get("stored")?;
        let expires_at: f64 = row.try_get("expires_at")?;
        Ok(Self {
            id: row.try_get("id")?,
            site: row.try_get("site")?,
            directory: row.try_get("directory")?,
            name: row.try_get("name")?,
            length: bytes("length")?,
            received: bytes("received")?,
            writer: row.try_get("writer")?,
            announced_hash: row.try_get("announced_hash")?,
            metadata: row.try_get("metadata")?,
            stored: stored.zip(row.try_get("hash")?),
            expires_at: Timestamp::from_second(expires_at as i64).unwrap_or(Timestamp::MAX),
        })
    }

    /// Records an upload that begins; with name and hash of its file if the site has its content already.
    pub(super) async fn insert(
        shared: &Shared,
        site: &str,
        new: &NewUpload,
        stored: Option<(&str, &str)>,
    ) -> ApiResult<Self> {
        let received = if stored.is_some() { new.length } else { 0 };
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "insert into cloud_meta.uploads as u (id, site, directory, name, length, received, announced_hash, \
                 metadata, stored, hash, expires_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now() + make_interval(secs => $11)) \
             returning {COLUMNS}"
        )))
        .bind(random_name())
        .bind(site)
        .bind(&new.directory)
        .bind(&new.name)
        .bind(new.length.cast_signed())
        .bind(received.cast_signed())
        .bind(&new.announced_hash)
        .bind(&new.metadata)
        .bind(stored.map(|(name, _)| name))
        .bind(stored.map(|(_, hash)| hash))
        .bind(shared.upload_expiry.as_secs_f64())
        .fetch_one(&shared.pool)
        .await?;
        Ok(Self::of(&row)?)
    }

    /// The site's upload with this id.
    ///
    /// # Errors
    /// 404 if the site has none, or none any more.
    pub(super) async fn find(pool: &PgPool, site: &str, id: &str) -> ApiResult<Self> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS} from cloud_meta.uploads where id = $1 and site = $2 \
             and (expires_at > now() or stored is not null)"
        )))
        .bind(id)
        .bind(site)
        .fetch_optional(pool)
        .await?;
        match row {
            Some(row) => Ok(Self::of(&row)?),
            None => Err(ApiError::new(
                axum::http::StatusCode::NOT_FOUND,
                "there is no such upload",
            )),
        }
    }

    /// The file of the unfinished upload.
    pub(super) fn path(&self, shared: &Shared) -> PathBuf {
        shared.files.join(INCOMING).join(&self.id)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.received == self.length
    }

    /// Notes that this many bytes are on disk, and that `writer` wrote them. Only the request that has seen
    /// the row's last state may: the caller has the file's lock, and this finds out where that lock is none.
    pub(super) async fn note(
        &mut self,
        pool: &PgPool,
        received: u64,
        writer: &str,
        expiry: Duration,
    ) -> ApiResult<()> {
        let noted = sqlx::query_scalar::<_, f64>(
            "update cloud_meta.uploads \
             set received = $2, writer = $3, expires_at = now() + make_interval(secs => $4) \
             where id = $1 and received = $5 and writer is not distinct from $6 and stored is null \
             returning extract(epoch from expires_at)::float8",
        )
        .bind(&self.id)
        .bind(received.cast_signed())
        .bind(writer)
        .bind(expiry.as_secs_f64())
        .bind(self.received.cast_signed())
        .bind(&self.writer)
        .fetch_optional(pool)
        .await?;
        let Some(expires_at) = noted else {
            return Err(ApiError::new(
                axum::http::StatusCode::CONFLICT,
                "another request has changed this upload",
            ));
        };
        self.expires_at = Timestamp::from_second(expires_at as i64).unwrap_or(Timestamp::MAX);
        (self.received, self.writer) = (received, Some(writer.to_owned()));
        Ok(())
    }

    /// Notes that the file is stored.
    pub(super) async fn note_stored(&mut self, pool: &PgPool, stored: String, hash: String) -> ApiResult<()> {
        sqlx::query("update cloud_meta.uploads set stored = $2, hash = $3, received = length where id = $1")
            .bind(&self.id)
            .bind(&stored)
            .bind(&hash)
            .execute(pool)
            .await?;
        self.stored = Some((stored, hash));
        Ok(())
    }

    /// Forgets the upload.
    pub(super) async fn delete(&self, pool: &PgPool) -> ApiResult<()> {
        sqlx::query("delete from cloud_meta.uploads where id = $1")
            .bind(&self.id)
            .execute(pool)
            .await?;
        Ok(())
    }
}

/// 128 random bits.
pub(super) fn random_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}
