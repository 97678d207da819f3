//! Whether the cloud still has the files that it had taken: it may be another one, or an older state of it
//! was restored. The same question brings a newer URL where URLs end.
//!
//! What is recorded of a file is its content's hash, its URL, and how it looked. A file whose record is to be
//! confirmed waits, without a time of upload; its URL holds until the cloud has answered. So the question
//! outlasts a restart.

use tokio_postgres::Client;

use super::file_records::failed;
use crate::error::Result;
use crate::sql_template::statement;

/// Why a file waits that the cloud may have lost.
const ASKED_AGAIN: &str = "the cloud is asked whether it still has it";

/// Clears what the cloud before had of each file, and makes those due that can be sent: another cloud has
/// none of them.
pub(crate) async fn upload_all_again(client: &Client) -> Result<()> {
    client
        .execute(statement!("files", "upload_all_again"), &[])
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Has the cloud asked whether it still has the files that rows of these entities name, or all files: those
/// that it does not have are uploaded again. Their URLs hold until it answers.
pub(crate) async fn ask_again(client: &Client, entities: Option<&[&str]>) -> Result<()> {
    client
        .execute(statement!("files", "ask_again"), &[&entities, &ASKED_AGAIN])
        .await
        .map_err(failed("write"))?;
    Ok(())
}

/// Why a file waits whose URL ends.
const RENEWED: &str = "its URL ends soon: the cloud is asked for a newer one";

/// Files whose URLs are renewed at a time.
const RENEWED_AT_ONCE: i64 = 1_000;

/// Has the cloud asked for newer URLs of files whose URLs end soon. Returns of how many.
pub(crate) async fn renew_urls(client: &Client) -> Result<u64> {
    client
        .execute(statement!("files", "renew_urls"), &[&RENEWED, &RENEWED_AT_ONCE])
        .await
        .map_err(failed("write"))
}

/// A file of which the cloud still has what is recorded.
#[derive(Debug)]
pub(crate) struct KeptFile<'a> {
    pub(crate) path: &'a str,
    /// In hexadecimal.
    pub(crate) hash: &'a str,
    pub(crate) url: &'a str,
    /// Whether the file looks otherwise now.
    pub(crate) has_changed: bool,
    /// When the URL is renewed, in seconds since 1970; `None` if it holds for ever.
    pub(crate) renew_at: Option<f64>,
}

/// Records that the cloud still has these files. In the caller's transaction. Returns the paths of those that
/// had another URL.
pub(crate) async fn confirm(client: &Client, files: &[KeptFile<'_>]) -> Result<Vec<String>> {
    let rows = client
        .query(
            statement!("files", "confirm"),
            &[
                &files.iter().map(|file| file.path).collect::<Vec<_>>(),
                &files.iter().map(|file| file.hash).collect::<Vec<_>>(),
                &files.iter().map(|file| file.url).collect::<Vec<_>>(),
                &files.iter().map(|file| file.has_changed).collect::<Vec<_>>(),
                &files.iter().map(|file| file.renew_at).collect::<Vec<_>>(),
            ],
        )
        .await
        .map_err(failed("write"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Makes files due whose content, of these hashes, the cloud no longer has. In the caller's transaction.
pub(crate) async fn forget_content(client: &Client, paths: &[&str], hashes: &[&str]) -> Result<()> {
    client
        .execute(statement!("files", "forget_content"), &[&paths, &hashes])
        .await
        .map_err(failed("write"))?;
    Ok(())
}
