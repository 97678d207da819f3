//! PgQ, the peer that captures by triggers into tables as we do: its queue and its trigger, both in C,
//! without a consumer.

use tokio_postgres::Client;

use crate::Outcome;
use crate::servers::World;

/// A database on the site's server, in which a table's changes go into a PgQ queue. PgQ's ticker does not
/// run: it is for consumers.
pub(crate) struct Pgq<'a> {
    world: &'a World,
    pub(crate) name: String,
}

/// PgQ, or why it is not measured.
pub(crate) enum PgqOrSkipped<'a> {
    Installed(Pgq<'a>),
    Skipped(String),
}

impl<'a> Pgq<'a> {
    /// Creates the tables, the queue and the trigger on `table`; skipped if the server does not have the
    /// extension.
    pub(crate) async fn install(world: &'a World, tables: &str, table: &str) -> Outcome<PgqOrSkipped<'a>> {
        let name = world.name("pgq");
        world.source.create(&name).await?;
        let client = world.source.connect(&name).await?;
        if let Some(reason) = absence(&client).await? {
            drop(client);
            world.forget(&name).await?;
            return Ok(PgqOrSkipped::Skipped(reason));
        }
        client.batch_execute(tables).await?;
        client
            .batch_execute(&format!(
                "create extension pgq;
                 select pgq.create_queue('figures');
                 create trigger figures after insert or update or delete on {table}
                 for each row execute function pgq.logutriga('figures')"
            ))
            .await?;
        Ok(PgqOrSkipped::Installed(Self { world, name }))
    }

    /// How many events it has captured.
    pub(crate) async fn events(&self) -> Outcome<i64> {
        let client = self.world.source.connect(&self.name).await?;
        let sql = "select count(*) from pgq.event_template";
        Ok(client.query_one(sql, &[]).await?.get(0))
    }

    pub(crate) async fn end(self) -> Outcome<()> {
        self.world.forget(&self.name).await
    }
}

/// Why PgQ cannot be had, `None` if it can.
async fn absence(client: &Client) -> Outcome<Option<String>> {
    let sql = "select exists (select 1 from pg_available_extensions where name = 'pgq'), \
               current_setting('server_version_num')::int / 10000";
    let row = client.query_one(sql, &[]).await?;
    let (is_available, major): (bool, i32) = (row.get(0), row.get(1));
    Ok((!is_available).then(|| {
        format!("PostgreSQL {major} here has no extension pgq (Debian's package postgresql-{major}-pgq3)")
    }))
}
