//! One writer of a workload: a session that works through restarts of the server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio_postgres::{Client, Error, NoTls};
use tokio_util::sync::CancellationToken;

use super::kinds::WorkUnit;
use super::{TransactionCounts, WorkloadScope, definitions, kinds, rows};
use crate::support::site::SITE;

pub(super) struct Writer {
    /// Which of the writers it is: the first holds transactions open, two prepare theirs, the last may change
    /// definitions.
    pub(super) number: u64,
    pub(super) scope: WorkloadScope,
    pub(super) url: String,
    pub(super) stop: CancellationToken,
    pub(super) rng: StdRng,
    pub(super) counts: Arc<Mutex<TransactionCounts>>,
    /// Whether the server has MERGE.
    pub(super) merge: bool,
    /// The names of transactions that may be prepared.
    pub(super) prepared: Vec<String>,
}

impl Writer {
    /// Writes at a bounded rate until it is stopped, through restarts of the server.
    pub(super) async fn run(mut self) {
        let mut nth = 0_u64;
        'connected: loop {
            let client = self.connect().await;
            while !self.stop.is_cancelled() {
                nth += 1;
                let (kind, done) = self.once(&client, nth).await;
                let committed = match done {
                    Ok(()) => true,
                    // A key that is taken, a lock that is not free, or a deadlock: the transaction is undone.
                    Err(error)
                        if error.code().is_some() && client.batch_execute("rollback").await.is_ok() =>
                    {
                        false
                    }
                    Err(_) => continue 'connected,
                };
                self.count(kind, committed);
                let pause = self.rng.random_range(2..15);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            for name in std::mem::take(&mut self.prepared) {
                if self.settle(&client, &name).await.is_err() {
                    self.prepared.push(name);
                }
            }
            if self.prepared.is_empty() {
                return;
            }
        }
    }

    fn count(&self, kind: &'static str, committed: bool) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.0.entry(kind).or_default();
        if committed {
            counts.0 += 1;
        } else {
            counts.1 += 1;
        }
    }

    /// One transaction, and its kind.
    async fn once(&mut self, client: &Client, nth: u64) -> (&'static str, Result<(), Error>) {
        let every_kind = self.scope != WorkloadScope::Rows;
        match self.number {
            0 => ("held open", self.hold_open(client).await),
            1 | 2 => {
                let name = format!("{SITE}-{}-{nth}", self.number);
                ("prepared", self.prepare(client, name).await)
            }
            7 if self.scope == WorkloadScope::Definitions && self.rng.random_bool(0.7) => {
                self.define(client).await
            }
            _ if every_kind && self.rng.random_bool(0.06) => ("copy", self.copy(client).await),
            _ => {
                let WorkUnit { kind, sql } = if every_kind {
                    kinds::transaction(&mut self.rng, self.merge)
                } else {
                    WorkUnit {
                        kind: "pots and leaves",
                        sql: rows::transaction(&mut self.rng),
                    }
                };
                (kind, client.batch_execute(&sql).await)
            }
        }
    }

    async fn connect(&mut self) -> Client {
        loop {
            if let Ok((client, connection)) = tokio_postgres::connect(&self.url, NoTls).await {
                tokio::spawn(connection);
                let version = client
                    .query_one("select current_setting('server_version_num')::int", &[])
                    .await;
                if let Ok(version) = version
                    && client.batch_execute("set lock_timeout = '300ms'").await.is_ok()
                {
                    self.merge = version.get::<_, i32>(0) >= 150_000;
                    return client;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A part of a transaction on the tables of every kind; nothing where only rows of pots and leaves are
    /// written.
    fn part(&mut self) -> String {
        match self.scope {
            WorkloadScope::Rows => "select".to_owned(),
            _ => kinds::part(&mut self.rng, self.merge).sql,
        }
    }

    /// A transaction that stays open for long, and writes at its beginning, amid it and at its end.
    async fn hold_open(&mut self, client: &Client) -> Result<(), Error> {
        let (row, word) = (self.rng.random_range(1000..1010), self.rng.random::<u32>());
        let first = self.part();
        client
            .batch_execute(&format!(
                "begin; insert into pot values ({row}, 'held {word}', 0) \
                 on conflict (pot_id) do update set label = excluded.label; \
                 savepoint s; {first}"
            ))
            .await?;
        for _ in 0..self.rng.random_range(2..30) {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = self.stop.cancelled() => break,
            }
            client
                .batch_execute(&format!(
                    "savepoint s; update pot set weight = weight + 1 where pot_id = {row}; release s"
                ))
                .await?;
        }
        let last = self.part();
        if client
            .batch_execute(&format!("savepoint s; {last}"))
            .await
            .is_err()
        {
            client.batch_execute("rollback to savepoint s").await?;
        }
        let end = if self.rng.random_bool(0.8) {
            "commit"
        } else {
            "rollback"
        };
        client.batch_execute(end).await
    }

    /// A transaction that is prepared; now and then it stays so for a while, through whatever else this
    /// writer does.
    async fn prepare(&mut self, client: &Client, name: String) -> Result<(), Error> {
        let (row, word) = (self.rng.random_range(2..200), self.rng.random::<u32>());
        let own = 2000 + self.number * 100 + self.rng.random_range(0..20);
        let part = self.part();
        // Whether or not the answer comes: it may be prepared from now on.
        self.prepared.push(name.clone());
        let prepared = client
            .batch_execute(&format!(
                "begin; insert into pot values ({own}, 'prepared {word}', 0) \
                 on conflict (pot_id) do update set label = excluded.label; \
                 update pot set weight = weight + 1 where pot_id = {row}; \
                 delete from leaf where pot_id = {row}; \
                 {part}; prepare transaction '{name}'"
            ))
            .await;
        if let Err(error) = &prepared
            && error.code().is_some()
        {
            client.batch_execute("rollback").await?;
        }
        while self.prepared.len() > 3 || (!self.prepared.is_empty() && self.rng.random_bool(0.6)) {
            let which = self.rng.random_range(0..self.prepared.len());
            let one = self.prepared.swap_remove(which);
            if let Err(error) = self.settle(client, &one).await {
                self.prepared.push(one);
                return Err(error);
            }
        }
        prepared
    }

    /// Commits or rolls back what was prepared, if it was.
    async fn settle(&mut self, client: &Client, name: &str) -> Result<(), Error> {
        let there = client
            .query("select from pg_prepared_xacts where gid = $1", &[&name])
            .await?;
        if there.is_empty() {
            return Ok(());
        }
        let end = if self.rng.random_bool(0.7) {
            "commit"
        } else {
            "rollback"
        };
        client.batch_execute(&format!("{end} prepared '{name}'")).await
    }

    /// Copies rows into a table, in a transaction that does more.
    async fn copy(&mut self, client: &Client) -> Result<(), Error> {
        let first = self.rng.random_range(200..400);
        let word: u32 = self.rng.random();
        let (table, text): (_, String) = match self.rng.random_range(0..3) {
            0 => (
                "stock (id, amount, note)",
                (first..first + 20)
                    .map(|id| format!("{id}\t0\tcopied {word}\n"))
                    .collect(),
            ),
            1 => (
                "item (id, title)",
                (first % 120..first % 120 + 5)
                    .map(|id| format!("{id}\tcopied {word}\n"))
                    .collect(),
            ),
            _ => (
                "event (id, day, note)",
                (0..60)
                    .step_by(7)
                    .map(|day| format!("{first}\t{day}\tcopied {word}\n"))
                    .collect(),
            ),
        };
        let name = table.split(' ').next().unwrap_or_default();
        client
            .batch_execute(&format!(
                "begin; delete from {name} where id between {first} and {first} + 20"
            ))
            .await?;
        let copy = client.copy_in(&format!("copy {table} from stdin")).await?;
        futures::pin_mut!(copy);
        copy.send(Bytes::from(text)).await?;
        copy.close().await?;
        client.batch_execute("commit").await
    }

    /// Changes a definition, and tries again while the lock is not free.
    async fn define(&mut self, client: &Client) -> (&'static str, Result<(), Error>) {
        let WorkUnit { kind, sql } = definitions::change(&mut self.rng);
        let mut tries = 1;
        loop {
            let done = client.batch_execute(&sql).await;
            let lock_is_taken = done
                .as_ref()
                .err()
                .and_then(Error::code)
                .is_some_and(|code| ["55P03", "40P01"].contains(&code.code()));
            if !lock_is_taken || tries == definitions::TRIES || self.stop.is_cancelled() {
                return (kind, done);
            }
            tries += 1;
            if let Err(error) = client.batch_execute("rollback").await {
                return (kind, Err(error));
            }
            let pause = self.rng.random_range(20..200);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}
