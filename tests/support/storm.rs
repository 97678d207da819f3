//! A storm: writers of every kind against one site, and an audit of what they committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use super::postgres::Server;
use super::site::{Cloud, KEY, SITE, Site, connect};

/// Parents and children with a composite key: small, so that starts are about the replicator and not the catalogue.
pub(crate) const TABLES: &str = "
create table pot (
    pot_id bigint primary key,
    label text,
    weight bigint not null default 0
);
create table leaf (
    pot_id bigint not null references pot on update cascade on delete cascade,
    nth int not null,
    note text,
    primary key (pot_id, nth)
)";

pub(crate) const ENTITIES: &str = "
[[entity]]
name = \"pots\"
table = \"pot\"
key = [\"pot_id\"]
path = \"pots\"

[[entity]]
name = \"leaves\"
table = \"leaf\"
key = [\"pot_id\", \"nth\"]
path = \"leaves\"
";

/// A second record of every committed touch, which nothing trims.
const AUDIT: &str = "
create table audit (position bigint primary key, captured_at timestamptz, entity smallint, op \"char\", key text);
create function public.audit() returns trigger language plpgsql as $$
begin
    insert into public.audit select position, captured_at, entity, op, coalesce(number::text, key) from added;
    return null;
end $$;
create trigger audit after insert on cloud_sync.segment_0 referencing new table as added execute function audit();
create trigger audit after insert on cloud_sync.segment_1 referencing new table as added execute function audit();
create trigger audit after insert on cloud_sync.segment_2 referencing new table as added execute function audit();
create trigger audit after insert on cloud_sync.segment_3 referencing new table as added execute function audit();
";

/// What a storm needs of a server: writers prepare transactions, and a crash takes back all that no commit has written.
pub(crate) const SERVER: [&str; 2] = ["max_prepared_transactions=20", "wal_writer_delay=10s"];

/// The site of a storm, with its audit, on this server.
pub(crate) async fn site(server: &Server, hint: &str, cloud_url: &str) -> Site {
    let site = Site::bare_on(server, hint, cloud_url, KEY, TABLES, ENTITIES).await;
    site.init().await;
    site.run(AUDIT).await;
    site.run("insert into pot values (1, 'hot', 0)").await;
    site
}

/// How many writers a storm has.
const WRITERS: u64 = 8;

/// Writers at work.
pub(crate) struct Storm {
    stop: CancellationToken,
    writers: JoinSet<()>,
    committed: Arc<AtomicU64>,
}

impl Storm {
    /// Starts the writers; the same seed starts the same ones.
    pub(crate) fn start(url: &str, seed: u64) -> Self {
        let stop = CancellationToken::new();
        let committed = Arc::new(AtomicU64::new(0));
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let writer = Writer {
                number,
                url: url.to_owned(),
                stop: stop.clone(),
                rng: StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(number)),
                committed: committed.clone(),
            };
            writers.spawn(writer.run());
        }
        Self {
            stop,
            writers,
            committed,
        }
    }

    /// Ends them, with nothing left open or prepared, and answers how many transactions were committed.
    pub(crate) async fn end(mut self) -> u64 {
        self.stop.cancel();
        while let Some(ended) = self.writers.join_next().await {
            ended.unwrap();
        }
        self.committed.load(Ordering::Relaxed)
    }
}

struct Writer {
    number: u64,
    url: String,
    stop: CancellationToken,
    rng: StdRng,
    committed: Arc<AtomicU64>,
}

impl Writer {
    /// Writes at a bounded rate until it is told to stop, through restarts of the server.
    async fn run(mut self) {
        let mut prepared = Vec::new();
        let mut nth = 0_u64;
        'connected: loop {
            let client = self.connect().await;
            while !self.stop.is_cancelled() {
                nth += 1;
                let done = match self.number {
                    0 => self.hold_open(&client).await,
                    1 | 2 => {
                        let name = format!("{SITE}-{}-{nth}", self.number);
                        self.prepare(&client, name, &mut prepared).await
                    }
                    _ => client.batch_execute(&transaction(&mut self.rng)).await,
                };
                match done {
                    Ok(()) => {
                        self.committed.fetch_add(1, Ordering::Relaxed);
                    }
                    // A key that is taken, a lock that is not free, or a deadlock: the transaction is undone.
                    Err(error)
                        if error.code().is_some() && client.batch_execute("rollback").await.is_ok() => {}
                    Err(_) => continue 'connected,
                }
                let pause = self.rng.random_range(2..15);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            for name in std::mem::take(&mut prepared) {
                if self.settle(&client, &name).await.is_err() {
                    prepared.push(name);
                }
            }
            if prepared.is_empty() {
                return;
            }
        }
    }

    async fn connect(&self) -> Client {
        loop {
            if let Ok((client, connection)) = tokio_postgres::connect(&self.url, NoTls).await {
                tokio::spawn(connection);
                if client.batch_execute("set lock_timeout = '300ms'").await.is_ok() {
                    return client;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A transaction that stays open for long, and writes at its beginning, amid it and at its end.
    async fn hold_open(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let (row, word) = (self.rng.random_range(1000..1010), self.rng.random::<u32>());
        client
            .batch_execute(&format!(
                "begin; insert into pot values ({row}, 'held {word}', 0) \
                 on conflict (pot_id) do update set label = excluded.label"
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
        let end = if self.rng.random_bool(0.8) {
            "commit"
        } else {
            "rollback"
        };
        client.batch_execute(end).await
    }

    /// A transaction that is prepared; now and then it stays so for a while, through whatever else this writer does.
    async fn prepare(
        &mut self,
        client: &Client,
        name: String,
        prepared: &mut Vec<String>,
    ) -> Result<(), tokio_postgres::Error> {
        let (row, word) = (self.rng.random_range(2..200), self.rng.random::<u32>());
        let own = 2000 + self.number * 100 + self.rng.random_range(0..20);
        // Whether or not the answer comes: it may be prepared from now on.
        prepared.push(name.clone());
        client
            .batch_execute(&format!(
                "begin; insert into pot values ({own}, 'prepared {word}', 0) \
                 on conflict (pot_id) do update set label = excluded.label; \
                 update pot set weight = weight + 1 where pot_id = {row}; delete from leaf where pot_id = {row}; \
                 prepare transaction '{name}'"
            ))
            .await?;
        while prepared.len() > 3 || (!prepared.is_empty() && self.rng.random_bool(0.6)) {
            let one = prepared.swap_remove(self.rng.random_range(0..prepared.len()));
            if let Err(error) = self.settle(client, &one).await {
                prepared.push(one);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Commits or rolls back what was prepared, if it was.
    async fn settle(&mut self, client: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
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
}

/// One transaction of a writer, of any kind. Some fail, as transactions do.
fn transaction(rng: &mut StdRng) -> String {
    let pot = rng.random_range(2..200);
    let other = rng.random_range(2..200);
    let word: u32 = rng.random();
    match rng.random_range(0..100) {
        0..25 => "update pot set weight = weight + 1 where pot_id = 1".to_owned(),
        25..40 => format!(
            "insert into pot values ({pot}, 'pot {word}', 0) on conflict (pot_id) do update set label = excluded.label"
        ),
        40..55 => format!(
            "insert into leaf select pot_id, n, 'leaf {word}' from pot, generate_series(1, {}) n where pot_id = {pot} \
             on conflict (pot_id, nth) do update set note = excluded.note",
            rng.random_range(1..8)
        ),
        55..65 => format!("delete from pot where pot_id = {pot}"),
        65..75 => format!("update pot set pot_id = {other} where pot_id = {pot}"),
        75..82 => format!(
            "begin; update pot set label = 'never' where pot_id = {pot}; \
             insert into leaf values ({other}, {word} % 100, 'never'); rollback"
        ),
        82..91 => format!(
            "begin; update pot set weight = weight + 1 where pot_id = 1; savepoint a; \
             update pot set label = 'undone' where pot_id = {pot}; delete from leaf where pot_id = {other}; \
             rollback to savepoint a; update pot set label = 'kept {word}' where pot_id = {other}; commit"
        ),
        91..99 => format!(
            "begin; update pot set weight = weight + 1 where pot_id between {pot} and {pot} + 5; \
             select pg_sleep(0.02); delete from leaf where pot_id = {other} and nth % 2 = 0; commit"
        ),
        _ => "truncate leaf".to_owned(),
    }
}

/// What of the audit must be in the cloud and is not, by row: each touch that the checkpoint counts as accepted, and each that is
/// no longer in the outbox. Such a row was read after the touch: the cloud has applied its state since, or has no such row. Holds
/// at any moment.
pub(crate) async fn audited(site: &Site, cloud: &Cloud) -> Vec<String> {
    let rows = site
        .client
        .query(
            &format!(
                "with c as (select (b->>'lo')::pg_snapshot as lo, (b->'window'->>'hi')::pg_snapshot as hi, \
                     (b->'window'->>'position')::bigint as position \
                     from cloud_sync.checkpoint, lateral (select body::json as b) b where source_id = '{SITE}') \
                 select e.name, k.key, max(a.position), extract(epoch from max(a.captured_at))::float8 \
                 from audit a join cloud_sync.entity e on e.id = a.entity \
                 left join cloud_sync.outbox o on o.position = a.position \
                 left join c on true, \
                 lateral (select case when a.op = 't' then '' \
                                 when e.name = 'pots' then jsonb_build_array(a.key)::text else to_jsonb(a.key::text[])::text end) k (key) \
                 where o.position is null or pg_visible_in_snapshot(o.xid, c.lo) \
                     or (pg_visible_in_snapshot(o.xid, c.hi) and o.position <= c.position) \
                 group by 1, 2"
            ),
            &[],
        )
        .await
        .unwrap();
    // The cloud after the site: what is accepted is there by then.
    let there = connect(&cloud.database_url).await;
    let reached = there
        .query(
            "select distinct on (entity, key) entity, coalesce(key::jsonb::text, ''), extract(epoch from at)::float8, op \
             from cloud_meta.history order by entity, key, id desc",
            &[],
        )
        .await
        .unwrap();
    let reached: std::collections::HashMap<(&str, &str), (f64, &str)> = reached
        .iter()
        .map(|row| ((row.get(0), row.get(1)), (row.get(2), row.get(3))))
        .collect();
    let mut found = Vec::new();
    for row in &rows {
        let (entity, key, position, touched): (&str, &str, i64, f64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        // A truncate settles every older state of its entity.
        let truncated = reached.get(&(entity, "")).map_or(f64::MIN, |(at, _)| *at);
        let missing = match reached.get(&(entity, key)) {
            // Where the row is not in the cloud, deleted or gone with a truncate, there was nothing to delete.
            Some((at, op)) => *op != "delete" && *at > truncated && *at < touched,
            None => key.is_empty() && truncated < touched,
        };
        if missing {
            found.push(format!(
                "position {position} of {entity} {key} counts as accepted, and the cloud has an older state of the row"
            ));
        }
    }
    found
}

/// Starts the audit anew, once all of it was found in the cloud.
#[allow(dead_code, reason = "for the soak")]
pub(crate) async fn forget_audit(site: &Site) {
    site.run("truncate audit").await;
}
