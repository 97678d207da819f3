//! How far the backfill of an entity has come, so that an interrupted one continues.

use tokio_postgres::Client;

use super::pages::LeafTable;
use crate::error::{Error, Result};
use crate::sql_template::statement;

/// How far an entity's backfill has come.
#[derive(Debug, Default)]
pub(crate) struct BackfillProgress {
    /// The table or partition that it has reached: those with a lower oid are done.
    relid: u32,
    /// The file of that table.
    filenode: u32,
    /// The page of it to continue at.
    page: u64,
    /// Rows pushed.
    pub(crate) pushed: u64,
    pub(crate) finished: bool,
}

impl BackfillProgress {
    /// How far an earlier run for the same days has come.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn load(client: &Client, entity: &str, days: Option<u32>) -> Result<Self> {
        let row = client
            .query_opt(
                statement!("backfill", "read"),
                &[&entity, &days.map(|days| days as i32)],
            )
            .await
            .map_err(|error| Error::postgres(format!("read the backfill of {entity}"), error))?;
        Ok(row.map_or_else(Self::default, |row| Self {
            relid: row.get(0),
            filenode: row.get(1),
            page: row.get::<_, i64>(2) as u64,
            pushed: row.get::<_, i64>(3) as u64,
            finished: row.get(4),
        }))
    }

    /// Keeps it in the site's database.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn save(&self, client: &Client, entity: &str, days: Option<u32>) -> Result<()> {
        client
            .execute(
                statement!("backfill", "keep"),
                &[
                    &entity,
                    &days.map(|days| days as i32),
                    &self.relid,
                    &self.filenode,
                    &(self.page as i64),
                    &(self.pushed as i64),
                    &self.finished,
                ],
            )
            .await
            .map_err(|error| Error::postgres(format!("keep the backfill of {entity}"), error))?;
        Ok(())
    }

    /// The page of the leaf to begin at; `None` if the leaf is done. A leaf whose file is another one has
    /// other pages.
    pub(crate) fn first_page(&self, leaf: &LeafTable) -> Option<u64> {
        match leaf.oid.cmp(&self.relid) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal if leaf.filenode == self.filenode => Some(self.page),
            _ => Some(0),
        }
    }

    /// Notes that the leaf is done up to this page.
    pub(crate) fn advance_to(&mut self, leaf: &LeafTable, page: u64) {
        (self.relid, self.filenode, self.page) = (leaf.oid, leaf.filenode, page);
    }
}
