//! A session with the site's database, and what a task must know of that before it works there.

use secrecy::SecretString;

use super::connect::Session;
use super::describe::{self, SourceTable};
use super::identity;
use super::install::{self, AttachedEntity};
use crate::catalogue::Catalogue;
use crate::checkpoint::Identity;
use crate::error::Result;

/// A session, the outbox's identity, and each entity's table and capture, in push order.
pub struct SiteSession {
    /// The session.
    pub session: Session,
    /// Which outbox it is.
    pub identity: Identity,
    /// The tables as they are now.
    pub tables: Vec<SourceTable>,
    /// The entities' numbers in the outbox, and the state of their capture.
    pub attached: Vec<AttachedEntity>,
}

impl SiteSession {
    /// Opens a session. `purpose` names it for people who look at the server's sessions; `source_id` is the
    /// configured one.
    ///
    /// # Errors
    /// The source's; a configuration error if capture is not installed.
    pub async fn open(
        database_url: &SecretString,
        purpose: &str,
        source_id: Option<&str>,
        catalogue: &Catalogue,
    ) -> Result<Self> {
        let session = Session::open(database_url, purpose).await?;
        let client = session.client();
        let identity = identity::stored_identity_of(client, source_id).await?;
        let tables = describe::present_tables(client, catalogue).await?;
        let attached = install::attached(client, catalogue, &tables).await?;
        Ok(Self {
            session,
            identity,
            tables,
            attached,
        })
    }
}
