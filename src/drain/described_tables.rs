//! The tables as the drain last described them.

use tokio_postgres::Statement;

use crate::catalogue::Catalogue;
use crate::error::Result;
use crate::source::connect::Session;
use crate::source::describe::{self, SourceTable};

/// The tables as they are; new ones whenever a column changed.
pub(super) struct DescribedTables {
    pub(super) tables: Vec<SourceTable>,
    /// The entities' numbers in the outbox.
    pub(super) numbers: Vec<i16>,
    /// Of each table's columns; and which table the catalogue's name is of.
    pub(super) fingerprints: Vec<(i64, Option<u32>)>,
}

impl DescribedTables {
    /// Describes the tables. Their entities' numbers are for the caller to add.
    ///
    /// # Errors
    /// The source's.
    pub(super) async fn read(session: &Session, prepared: &Statement, catalogue: &Catalogue) -> Result<Self> {
        let client = session.client();
        // The fingerprints first: a column that is added in between is then noticed by the next look.
        let mut tables = describe::present_tables(client, catalogue).await?;
        loop {
            let mut fingerprints = Vec::with_capacity(tables.len());
            for (entity, table) in catalogue.entities().iter().zip(&tables) {
                let (columns, named) =
                    describe::fingerprint(client, prepared, &[table.oid], &[&entity.table]).await?;
                fingerprints.push((columns, named.first().copied().flatten()));
            }
            let again = describe::present_tables(client, catalogue).await?;
            if again == tables {
                return Ok(Self {
                    tables,
                    numbers: Vec::new(),
                    fingerprints,
                });
            }
            tables = again;
        }
    }
}
