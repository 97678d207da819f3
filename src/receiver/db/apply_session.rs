//! A connection on which rows are written, with the statements that are prepared on it.
//!
//! Requests that do not need each other's answers are sent together (`tokio::join!`): PostgreSQL runs them in
//! their order, and they cost one round trip. If one of them fails within a transaction, those after it fail
//! too and its `commit` rolls back; so the first error in their order is the one that counts.

use std::collections::HashMap;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};
use tokio_util::task::AbortOnDropHandle;

use crate::receiver::db::connector::Connector;
use crate::receiver::db::db_error::DbError;

/// Statements kept prepared on a connection: a few for each entity.
const STATEMENTS: usize = 500;

/// The values of a statement's parameters.
pub(crate) type Params<'a> = Vec<&'a (dyn ToSql + Sync)>;

/// The name of the lock that changes of all tables take.
const TABLES_LOCK: &str = "tables";

const LOCK: &str = include_str!("../../../sql/receiver/lock.sql");

/// A connection on which rows are written. Dropping it closes the connection, whatever is in progress.
pub(crate) struct ApplySession {
    client: Client,
    statements: StatementCache,
    driver: AbortOnDropHandle<()>,
}

impl ApplySession {
    /// Opens a connection.
    pub(crate) async fn open(connector: &Connector) -> Result<Self, DbError> {
        let (client, driver) = connector.connect().await?;
        Ok(Self {
            client,
            statements: StatementCache::default(),
            driver,
        })
    }

    /// The client for requests.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The prepared statement of this text.
    pub(crate) async fn statement(&mut self, sql: &str, types: &[Type]) -> Result<Statement, DbError> {
        self.statement_named(sql, || (sql.to_owned(), types.to_vec()))
            .await
    }

    /// The prepared statement of this name; `build` makes its text and its parameters' types if it is not
    /// prepared yet. A name must always have the same text.
    pub(crate) async fn statement_named(
        &mut self,
        name: &str,
        build: impl FnOnce() -> (String, Vec<Type>),
    ) -> Result<Statement, DbError> {
        if let Some(statement) = self.statements.get(name) {
            return Ok(statement);
        }
        let (sql, types) = build();
        let statement = self.client.prepare_typed(&sql, &types).await?;
        self.statements.insert(name, statement.clone());
        Ok(statement)
    }

    /// The lock of a site's rows.
    pub(crate) async fn site_lock(&mut self, site: &str) -> Result<Lock, DbError> {
        self.lock(format!("site {site}")).await
    }

    async fn lock(&mut self, name: String) -> Result<Lock, DbError> {
        let statement = self.statement(LOCK, &[Type::TEXT]).await?;
        Ok(Lock { statement, name })
    }

    /// Begins a transaction in which no other request writes rows of this site.
    pub(crate) async fn begin_for_site(&mut self, site: &str) -> Result<(), DbError> {
        let lock = self.site_lock(site).await?;
        self.begin_with(&lock).await
    }

    /// Begins a transaction in which no other request changes tables.
    pub(crate) async fn begin_for_tables(&mut self) -> Result<(), DbError> {
        let lock = self.lock(TABLES_LOCK.to_owned()).await?;
        self.begin_with(&lock).await
    }

    async fn begin_with(&self, lock: &Lock) -> Result<(), DbError> {
        let (begun, locked) = tokio::join!(self.client.batch_execute("begin"), lock.take(&self.client));
        begun?;
        locked?;
        Ok(())
    }

    /// Commits the transaction.
    pub(crate) async fn commit(&self) -> Result<(), DbError> {
        Ok(self.client.batch_execute("commit").await?)
    }

    /// Ends the transaction without effect.
    pub(crate) async fn rollback(&self) -> Result<(), DbError> {
        Ok(self.client.batch_execute("rollback").await?)
    }

    /// Whether the server still answers.
    pub(crate) async fn is_alive(&self) -> bool {
        self.client.check_connection().await.is_ok()
    }

    /// Whether the connection is known to be closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Says goodbye to the server, and waits until the connection is closed.
    pub(crate) async fn close(self) {
        drop(self.client);
        let _ = self.driver.await;
    }
}

/// A lock that a transaction can take.
pub(crate) struct Lock {
    statement: Statement,
    name: String,
}

impl Lock {
    /// Takes it until the transaction ends.
    pub(crate) async fn take(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        client.execute(&self.statement, &[&self.name]).await?;
        Ok(())
    }
}

/// The statements that are prepared on a connection; the ones that were not used for the longest time make
/// room.
#[derive(Default)]
struct StatementCache {
    statements: HashMap<String, CachedStatement>,
    uses: u64,
}

struct CachedStatement {
    statement: Statement,
    last_use: u64,
}

impl StatementCache {
    fn get(&mut self, name: &str) -> Option<Statement> {
        let cached = self.statements.get_mut(name)?;
        self.uses += 1;
        cached.last_use = self.uses;
        Some(cached.statement.clone())
    }

    fn insert(&mut self, name: &str, statement: Statement) {
        if self.statements.len() >= STATEMENTS {
            let oldest = self
                .statements
                .iter()
                .min_by_key(|(_, cached)| cached.last_use)
                .map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                // Dropping the statement closes it on the server.
                self.statements.remove(&oldest);
            }
        }
        self.uses += 1;
        let cached = CachedStatement {
            statement,
            last_use: self.uses,
        };
        self.statements.insert(name.to_owned(), cached);
    }
}
