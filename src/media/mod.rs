//! The file lane.

use tokio_postgres::Client;

use crate::batch::Batch;
use crate::catalogue::Catalogue;
use crate::error::Result;

/// Adds URLs.
pub async fn attach_urls(_client: &Client, _catalogue: &Catalogue, _batch: &mut Batch) -> Result<()> {
    Ok(())
}

/// Notes references.
pub async fn note_references(_client: &Client, _catalogue: &Catalogue, _batch: &Batch) -> Result<()> {
    Ok(())
}
