//! How the arrival of rows is found, at a cost that does not grow with the table.
//!
//! A table numbers its keys upward, so the rows of a run are those above a mark: the highest key that had
//! arrived with the run before. Only these are counted, and only once the row that was committed last is
//! visible. The figure ends when the statement that saw all of them was sent: what counting takes is no part
//! of it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::Outcome;
use crate::load::LoadTable;

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// The time between two looks at a database. [`wait`] looks less often where a look takes long, so that
/// looking takes little from what is measured.
pub(crate) const LOOK: Duration = Duration::from_millis(3);
const LOOK_SHARE: u32 = 10;

/// Where rows arrive.
#[derive(Clone, Copy)]
pub(crate) enum Destination {
    /// The receiver's tables: the site's rows of `cloud.<entity>`.
    Receiver,
    /// A subscriber's table, named as at the source.
    Subscriber,
}

/// The rows that a table had at the source, which shall be visible at the destination.
pub(crate) struct Goal {
    /// The table's name at the source.
    table: String,
    /// Its name at the destination.
    there: String,
    /// A condition on its rows there, `true` if there is none.
    condition: &'static str,
    key: &'static str,
    /// Rows up to this key are there already.
    mark: i64,
    /// The highest key, or the one that was committed last.
    last: i64,
    /// How many rows have a key above the mark.
    count: i64,
}

impl Goal {
    /// The goal once one writer has inserted so many rows more.
    pub(crate) fn and(self, rows: u64) -> Self {
        Self {
            last: self.last + rows as i64,
            count: self.count + rows as i64,
            ..self
        }
    }
}

/// The arrivals of one source at its destination: which rows are there, by the highest key of each table.
pub(crate) struct Arrivals {
    destination: Destination,
    marks: RefCell<HashMap<String, i64>>,
}

impl Arrivals {
    pub(crate) fn new(destination: Destination) -> Self {
        Self {
            destination,
            marks: RefCell::default(),
        }
    }

    /// The rows that the table has now at the source.
    pub(crate) async fn goal(&self, source: &Client, table: &LoadTable) -> Outcome<Goal> {
        let mark = self.marks.borrow().get(&table.name).copied().unwrap_or(0);
        let (name, key) = (&table.name, table.key);
        let sql = format!("select coalesce(max({key}), $1), count(*) from {name} where {key} > $1");
        let row = source.query_one(&sql, &[&mark]).await?;
        let (there, condition) = match self.destination {
            Destination::Receiver => (format!("cloud.{}", table.entity), "_site = 'figures'"),
            Destination::Subscriber => (name.clone(), "true"),
        };
        Ok(Goal {
            table: name.clone(),
            there,
            condition,
            key,
            mark,
            last: row.get(0),
            count: row.get(1),
        })
    }

    /// Inserts one row more, which commits after all others, and returns the goal with it. Both cloud-sync
    /// and logical replication make commits visible in order: once this row is visible, so are the others.
    pub(crate) async fn goal_with_last_row(&self, source: &Client, table: &LoadTable) -> Outcome<Goal> {
        source.batch_execute(&table.one_row).await?;
        self.goal(source, table).await
    }

    /// Waits until the rows are visible; the moment at which the statement that saw all of them was sent.
    pub(crate) async fn reached(&self, cloud: &Client, goal: &Goal) -> Outcome<Instant> {
        let Goal {
            there,
            condition,
            key,
            ..
        } = goal;
        if goal.count == 0 {
            return Ok(Instant::now());
        }
        wait(cloud, "select to_regclass($1::text) is not null", &[there]).await?;
        let last = format!("select exists (select 1 from {there} where {condition} and {key} = $1)");
        wait(cloud, &last, &[&goal.last]).await?;
        // How many rows there are above the mark, and up to which key no row is missing: the next look counts
        // from there.
        let above = format!(
            "select count(*), coalesce(max({key}) filter (where {key} - rank = $1), $1) from \
             (select {key}, row_number() over (order by {key}) as rank \
              from {there} where {condition} and {key} > $1) above"
        );
        let above = cloud.prepare(&above).await?;
        let (mut mark, mut missing) = (goal.mark, goal.count);
        let start = Instant::now();
        loop {
            let sent = Instant::now();
            let row = cloud.query_one(&above, &[&mark]).await?;
            let (count, complete): (i64, i64) = (row.get(0), row.get(1));
            if count >= missing {
                self.marks.borrow_mut().insert(goal.table.clone(), goal.last);
                return Ok(sent);
            }
            if start.elapsed() > LIMIT {
                let missing = missing - count;
                return Err(format!("{missing} rows are not in {there} within {LIMIT:?}").into());
            }
            missing -= complete - mark;
            mark = complete;
            sleep(LOOK).await;
        }
    }
}

/// Waits until a database answers this with true.
pub(crate) async fn wait(client: &Client, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Outcome<()> {
    let statement = client.prepare(sql).await?;
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        if client.query_one(&statement, values).await?.get(0) {
            return Ok(());
        }
        if start.elapsed() > LIMIT {
            return Err(format!("not within {LIMIT:?}: {sql}").into());
        }
        sleep(LOOK.max(asked.elapsed() * LOOK_SHARE)).await;
    }
}

/// The process of the backend that serves a client.
pub(crate) async fn backend(client: &Client) -> Outcome<u32> {
    let pid: i32 = client.query_one("select pg_backend_pid()", &[]).await?.get(0);
    Ok(u32::try_from(pid)?)
}
