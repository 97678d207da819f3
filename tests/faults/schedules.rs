//! Random schedules of concurrent transactions, drained at random moments, compared with a model.
//!
//! The schedules run one after another on one table: each begins by emptying both sides, so that a failing
//! one can be replayed and shrunk. `PROPTEST_CASES` says how many there are.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::drain::{BatchLimits, Drain, DrainStep, Stages};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner};
use tokio_postgres::Client;

use crate::support::oracle::{Tally, amid};
use crate::support::site::{Cloud, Site, connect};
use crate::support::store::MemoryStore;

const TABLE: &str = "create table thing (id bigint primary key, label bigint not null)";
const ENTITY: &str = "
[[entity]]
name = \"things\"
table = \"thing\"
key = [\"id\"]
path = \"things\"
";

const SESSIONS: usize = 3;
const ROWS: i64 = 4;

/// Schedules, unless PROPTEST_CASES says otherwise; fewer where the machine is slow.
const CASES: u32 = 60;
const ENOUGH: Duration = Duration::from_secs(25);

/// One step of a schedule. Statements outside a transaction commit by themselves; one that would wait for a
/// lock, or that fails, is undone alone.
#[derive(Debug, Clone)]
enum Action {
    Begin,
    /// Takes a transaction number and changes nothing.
    Number,
    Put(i64),
    Insert(i64),
    Update(i64),
    UpdateAll,
    Delete(i64),
    Rekey(i64, i64),
    Truncate,
    Savepoint,
    RollbackTo,
    Commit,
    Rollback,
    /// One step of the drain that is open.
    Drain,
    /// Steps until nothing waits.
    DrainAll,
    /// One step, whose checkpoint does not reach the disk: the drain ends.
    DrainUncommitted,
    /// The replicator ends, and starts again with the next drain.
    Restart,
    /// It also loses its store.
    LoseStore,
}

fn action() -> impl Strategy<Value = Action> {
    let row = || 1..=ROWS;
    prop_oneof![
        6 => Just(Action::Begin),
        2 => Just(Action::Number),
        5 => row().prop_map(Action::Put),
        3 => row().prop_map(Action::Insert),
        6 => row().prop_map(Action::Update),
        1 => Just(Action::UpdateAll),
        3 => row().prop_map(Action::Delete),
        3 => (row(), row()).prop_map(|(from, to)| Action::Rekey(from, to)),
        1 => Just(Action::Truncate),
        2 => Just(Action::Savepoint),
        2 => Just(Action::RollbackTo),
        6 => Just(Action::Commit),
        2 => Just(Action::Rollback),
        5 => Just(Action::Drain),
        3 => Just(Action::DrainAll),
        1 => Just(Action::DrainUncommitted),
        1 => Just(Action::Restart),
        1 => Just(Action::LoseStore),
    ]
}

/// What a row holds; `None` if there is no such row.
type State = Option<i64>;

/// A session, and what its open transaction has done.
struct Session {
    client: Client,
    /// The rows that the transaction changed, in order; none outside a transaction.
    open: Option<Vec<(i64, State)>>,
    /// How many of them there were at each savepoint.
    savepoints: Vec<usize>,
}

/// What is committed: each row's states, in order, from the empty table on.
struct Model {
    rows: BTreeMap<i64, Vec<State>>,
    /// Which state of each row the cloud was last seen in.
    seen: BTreeMap<i64, usize>,
    /// Whether the table was truncated. What was written to it since can be on its way before the truncate
    /// is, as a row's present state is sent with its first touch: the row is gone then, until its later touch
    /// brings it again.
    truncated: bool,
}

impl Model {
    fn empty() -> Self {
        Self {
            rows: (1..=ROWS).map(|row| (row, vec![None])).collect(),
            seen: (1..=ROWS).map(|row| (row, 0)).collect(),
            truncated: false,
        }
    }

    fn commit(&mut self, changes: Vec<(i64, State)>) {
        // A transaction may arrive in several batches, and so a row in each state that the transaction gave
        // it.
        for (row, state) in changes {
            self.rows.get_mut(&row).unwrap().push(state);
        }
    }

    fn now(&self) -> BTreeMap<i64, i64> {
        let last = |(&row, states): (&i64, &Vec<State>)| Some((row, (*states.last()?)?));
        self.rows.iter().filter_map(last).collect()
    }

    /// Checks that the cloud holds a committed state of each row, and none that is older than one it held
    /// before.
    fn look(&mut self, cloud: &BTreeMap<i64, i64>) -> std::result::Result<(), TestCaseError> {
        for (row, states) in &self.rows {
            let held = cloud.get(row).copied();
            if held.is_none() && self.truncated {
                continue;
            }
            let seen = self.seen[row];
            let found = states[seen..].iter().position(|state| *state == held);
            prop_assert!(
                found.is_some(),
                "row {row} is {held:?} in the cloud; \
                 it was {states:?}, and the cloud had seen number {seen} of these"
            );
            self.seen.insert(*row, seen + found.unwrap_or_default());
        }
        Ok(())
    }
}

struct ScheduleRun {
    site: Site,
    cloud: Cloud,
    there: Client,
    drain: Drain,
    store: Arc<MemoryStore>,
    sessions: Vec<Session>,
    stages: Option<Stages>,
    /// Each value that is written is new, over all schedules.
    label: i64,
}

async fn held(client: &Client, sql: &str) -> BTreeMap<i64, i64> {
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

impl ScheduleRun {
    async fn new() -> Self {
        let (cloud, site) = Site::captured("schedules", TABLE, ENTITY).await;
        let store = Arc::new(MemoryStore::default());
        let mut drain = site.drain();
        drain.store = store.clone();
        // Windows of more than one batch.
        drain.limits = BatchLimits {
            rows: 3,
            bytes: 1 << 20,
        };
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS {
            let client = connect(&site.database_url).await;
            client.batch_execute("set lock_timeout = '2ms'").await.unwrap();
            sessions.push(Session {
                client,
                open: None,
                savepoints: Vec::new(),
            });
        }
        let there = connect(&cloud.database_url).await;
        Self {
            site,
            cloud,
            there,
            drain,
            store,
            sessions,
            stages: None,
            label: 0,
        }
    }

    /// Empties both sides, whatever the last schedule left.
    async fn reset(&mut self) {
        for session in &mut self.sessions {
            session.client.batch_execute("rollback").await.unwrap();
            session.open = None;
            session.savepoints.clear();
        }
        self.store.cancel_failure();
        self.stages = None;
        self.site
            .run("insert into thing values (0, 0); truncate thing")
            .await;
        loop {
            while self.step().await == DrainStep::Delivered {}
            if !self.parked().await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stages = None;
        self.there
            .batch_execute(
                "truncate cloud.things, cloud_meta.tombstones, cloud_meta.truncate_marks, cloud_meta.history",
            )
            .await
            .unwrap();
    }

    /// Runs a schedule, and checks as it goes.
    async fn run(&mut self, schedule: &[(usize, Action)]) -> std::result::Result<(), TestCaseError> {
        self.reset().await;
        let mut model = Model::empty();
        for (session, action) in schedule {
            match action {
                Action::Drain => {
                    self.step().await;
                    self.look(&mut model).await?;
                }
                Action::DrainAll => self.drain_all(&mut model, false).await?,
                Action::DrainUncommitted => {
                    self.store.fail_next_commit();
                    let stages = self.stages().await;
                    let stepped = stages.step().await;
                    let failed = !self.store.cancel_failure();
                    prop_assert_eq!(failed, stepped.is_err());
                    if failed {
                        self.stages = None;
                    }
                    self.look(&mut model).await?;
                }
                Action::Restart => self.stages = None,
                Action::LoseStore => {
                    self.stages = None;
                    self.store.clear();
                }
                _ => self.act(*session, action, &mut model).await,
            }
        }
        // At the end all commit or roll back, and all is drained.
        for session in 0..SESSIONS {
            let end = if session == 1 {
                Action::Rollback
            } else {
                Action::Commit
            };
            self.act(session, &end, &mut model).await;
        }
        self.drain_all(&mut model, true).await?;
        let source = held(&self.site.client, "select id, label from thing").await;
        prop_assert_eq!(source, model.now(), "the model is wrong");
        let found = amid(&self.site, &self.cloud).await;
        prop_assert!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    }

    async fn stages(&mut self) -> &mut Stages {
        if self.stages.is_none() {
            self.stages = Some(self.drain.open().await.unwrap());
        }
        self.stages.as_mut().unwrap()
    }

    async fn step(&mut self) -> DrainStep {
        self.stages().await.step().await.unwrap()
    }

    async fn look(&self, model: &mut Model) -> std::result::Result<BTreeMap<i64, i64>, TestCaseError> {
        let cloud = held(&self.there, "select id, label from cloud.things").await;
        model.look(&cloud)?;
        Ok(cloud)
    }

    /// Whether the table could not be read, and its touches are kept.
    async fn parked(&self) -> bool {
        let parked = "select exists (select from cloud_sync.entity where parked is not null)";
        self.site.client.query_one(parked, &[]).await.unwrap().get(0)
    }

    /// Whatever is committed by now arrives, whoever has a transaction open; but what nobody can read while a
    /// truncate holds the table waits for that one's end, `ended` tells that it came.
    async fn drain_all(&mut self, model: &mut Model, ended: bool) -> std::result::Result<(), TestCaseError> {
        loop {
            while self.step().await == DrainStep::Delivered {
                self.look(model).await?;
            }
            match (self.parked().await, ended) {
                (false, _) => break,
                (true, false) => return Ok(()),
                (true, true) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        let cloud = self.look(model).await?;
        prop_assert_eq!(
            cloud,
            model.now(),
            "nothing waits, and the cloud lacks what is committed"
        );
        Ok(())
    }

    /// Does what a session does; the model follows what the database answers.
    async fn act(&mut self, session: usize, action: &Action, model: &mut Model) {
        self.label += 1;
        let label = self.label;
        let session = &mut self.sessions[session];
        let sql = match action {
            Action::Begin if session.open.is_none() => {
                session.client.batch_execute("begin").await.unwrap();
                session.open = Some(Vec::new());
                return;
            }
            Action::Commit | Action::Rollback => {
                if let Some(changes) = session.open.take() {
                    session.savepoints.clear();
                    let commits = matches!(action, Action::Commit);
                    let sql = if commits { "commit" } else { "rollback" };
                    session.client.batch_execute(sql).await.unwrap();
                    if commits {
                        model.commit(changes);
                    }
                }
                return;
            }
            Action::Savepoint => {
                if let Some(changes) = &session.open {
                    session.savepoints.push(changes.len());
                    session.client.batch_execute("savepoint mark").await.unwrap();
                }
                return;
            }
            Action::RollbackTo => {
                if let (Some(changes), Some(length)) = (&mut session.open, session.savepoints.pop()) {
                    let sql = "rollback to savepoint mark; release savepoint mark";
                    session.client.batch_execute(sql).await.unwrap();
                    changes.truncate(length);
                }
                return;
            }
            Action::Number => {
                if session.open.is_some() {
                    let sql = "select pg_current_xact_id()";
                    session.client.batch_execute(sql).await.unwrap();
                }
                return;
            }
            Action::Put(row) => format!(
                "insert into thing values ({row}, {label}) \
                 on conflict (id) do update set label = excluded.label returning null::bigint, id, label"
            ),
            Action::Insert(row) => {
                format!("insert into thing values ({row}, {label}) returning null::bigint, id, label")
            }
            Action::Update(row) => {
                format!("update thing set label = {label} where id = {row} returning null::bigint, id, label")
            }
            Action::UpdateAll => {
                format!("update thing set label = {label} returning null::bigint, id, label")
            }
            Action::Delete(row) => {
                format!("delete from thing where id = {row} returning id, null::bigint, null::bigint")
            }
            Action::Rekey(from, to) => {
                format!("update thing set id = {to} where id = {from} returning {from}::bigint, id, label")
            }
            Action::Truncate => "truncate thing".to_owned(),
            _ => return,
        };
        let Some(done) = session.guarded(&sql).await else {
            return;
        };
        let mut changes = Vec::new();
        if matches!(action, Action::Truncate) {
            model.truncated = true;
            changes.extend((1..=ROWS).map(|row| (row, None)));
        }
        for row in done {
            changes.extend(row.get::<_, Option<i64>>(0).map(|gone| (gone, None)));
            changes.extend(row.get::<_, Option<i64>>(1).map(|there| (there, row.get(2))));
        }
        match &mut session.open {
            Some(open) => open.extend(changes),
            None => model.commit(changes),
        }
    }
}

impl Session {
    /// Runs a statement that may fail by a lock, a key or a deadlock, and is undone alone then.
    async fn guarded(&self, sql: &str) -> Option<Vec<tokio_postgres::Row>> {
        let in_transaction = self.open.is_some();
        if in_transaction {
            self.client.batch_execute("savepoint guard").await.unwrap();
        }
        let done = self.client.query(sql, &[]).await;
        if in_transaction {
            let sql = match done {
                Ok(_) => "release savepoint guard",
                Err(_) => "rollback to savepoint guard; release savepoint guard",
            };
            self.client.batch_execute(sql).await.unwrap();
        }
        match done {
            Ok(rows) => Some(rows),
            Err(error) => {
                let code = error.code().expect("the connection holds").code();
                // Lock not available, key taken, deadlock.
                assert!(["55P03", "23505", "40P01"].contains(&code), "{sql}: {error:?}");
                None
            }
        }
    }
}

#[test]
fn any_schedule_of_transactions_arrives_in_order_and_whole() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let world = RefCell::new(runtime.block_on(ScheduleRun::new()));
    let mut tally = Tally::default();
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let mut config = if asked {
        Config::default()
    } else {
        Config::with_cases(CASES)
    };
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(
        "tests/faults/schedules.proptest-regressions",
    )));
    config.max_shrink_iters = 500;
    let (begun, ran_count, shrinks) = (Instant::now(), Cell::new(0), Cell::new(false));
    let ran = TestRunner::new(config).run(&vec((0..SESSIONS, action()), 1..60), |schedule| {
        if !asked && !shrinks.get() && begun.elapsed() > ENOUGH {
            return Ok(());
        }
        ran_count.set(ran_count.get() + 1);
        // One that panics fails too.
        let shrinking = shrinks.replace(true);
        let result = runtime.block_on(world.borrow_mut().run(&schedule));
        shrinks.set(shrinking || result.is_err());
        result
    });
    println!("{} schedules in {:?}", ran_count.get(), begun.elapsed());
    match ran {
        Ok(()) => {}
        // The reason last: the schedule may be long.
        Err(TestError::Fail(reason, schedule)) => panic!("{schedule:?}\n{reason}"),
        Err(failure) => panic!("{failure}"),
    }
    let world = world.into_inner();
    runtime.block_on(tally.judge(&world.site, &world.cloud));
}
