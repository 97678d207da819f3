//! The faults: which there are, how often each is drawn, and how each strikes.

use std::time::Duration;

use cloud_sync::abort;
use rand::RngExt;

use crate::support::fault as fault_proxy;
use crate::support::tcp_proxy::Trouble;
use crate::{Run, World, tail};

/// The faults, and how often each is drawn.
const FAULTS: [(SoakFault, u32); 23] = [
    (SoakFault::Kill, 20),
    (SoakFault::Abort, 20),
    (SoakFault::Terminate, 6),
    (SoakFault::KillBackends, 8),
    (SoakFault::KillReceiver, 8),
    (SoakFault::KillReceiverBackends, 6),
    (SoakFault::CrashSource, 4),
    (SoakFault::RestartSource, 2),
    (SoakFault::CrashCloudDatabase, 2),
    (SoakFault::CutRequest, 8),
    (SoakFault::CutAnswer, 8),
    (SoakFault::HoldAnswers, 4),
    (SoakFault::Stall, 4),
    (SoakFault::Slow, 4),
    (SoakFault::Refuse, 6),
    (SoakFault::DeleteStore, 3),
    (SoakFault::OverwriteStore, 3),
    (SoakFault::SecondReplicator, 5),
    (SoakFault::RefuseSchema, 4),
    (SoakFault::RefuseRows, 5),
    (SoakFault::HoldLocks, 5),
    (SoakFault::Sync, 4),
    (SoakFault::Backfill, 3),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SoakFault {
    Kill,
    Abort,
    Terminate,
    KillBackends,
    KillReceiver,
    KillReceiverBackends,
    CrashSource,
    RestartSource,
    CrashCloudDatabase,
    CutRequest,
    CutAnswer,
    HoldAnswers,
    Stall,
    Slow,
    Refuse,
    /// The cloud refuses the schema of every entity.
    RefuseSchema,
    /// The cloud refuses whole requests of changes.
    RefuseRows,
    /// A role holds every lock that it can take.
    HoldLocks,
    DeleteStore,
    OverwriteStore,
    SecondReplicator,
    Sync,
    Backfill,
}

impl World<'_> {
    pub(super) fn draw(&mut self) -> SoakFault {
        let commands = self.commands;
        let drawn = || {
            (FAULTS.into_iter())
                .filter(|(fault, _)| commands || ![SoakFault::Sync, SoakFault::Backfill].contains(fault))
        };
        let sum = drawn().map(|(_, weight)| weight).sum::<u32>();
        let mut at = self.rng.random_range(0..sum);
        for (fault, weight) in drawn() {
            if at < weight {
                return fault;
            }
            at -= weight;
        }
        SoakFault::Kill
    }

    pub(super) async fn strike(&mut self, fault: SoakFault) -> Result<(), String> {
        let trouble = match fault {
            SoakFault::Kill => {
                let which = self.kill();
                if self.rng.random_bool(0.3) {
                    self.pause(1, 1500).await;
                }
                self.start(which, None);
                return Ok(());
            }
            SoakFault::Abort => {
                let which = self.kill();
                let point = abort::POINTS[self.rng.random_range(0..abort::POINTS.len())];
                let point = format!("{point}#{}", self.rng.random_range(1..8));
                self.start(which, Some(&point));
                return Ok(());
            }
            SoakFault::Terminate => return self.terminate().await,
            SoakFault::KillBackends => {
                self.tally.kills += 1;
                let some = self.rng.random_range(1..100);
                let _ = self
                    .ask(
                        &self.site.database_url,
                        &format!(
                            "select pg_terminate_backend(pid) from pg_stat_activity \
                             where application_name like 'cloud-sync%' and pid % 100 < {some}"
                        ),
                    )
                    .await;
                return Ok(());
            }
            SoakFault::KillReceiver => {
                self.tally.kills += 1;
                self.receiver.kill();
                self.pause(1, 1500).await;
                self.receiver.ensure();
                return Ok(());
            }
            SoakFault::KillReceiverBackends => {
                self.tally.kills += 1;
                let _ = self
                    .ask(
                        &self.cloud.database_url,
                        "select pg_terminate_backend(pid) from pg_stat_activity \
                         where datname = current_database() and pid <> pg_backend_pid()",
                    )
                    .await;
                return Ok(());
            }
            SoakFault::CrashSource | SoakFault::RestartSource | SoakFault::CrashCloudDatabase => {
                self.tally.kills += 1;
                let server = match fault {
                    SoakFault::CrashCloudDatabase => self.cloud_server,
                    _ => self.source,
                };
                let signal = if fault == SoakFault::RestartSource {
                    "INT"
                } else {
                    "QUIT"
                };
                tokio::task::block_in_place(|| server.restart(signal));
                return Ok(());
            }
            SoakFault::DeleteStore | SoakFault::OverwriteStore => {
                self.tally.faults += 1;
                let which = self.kill();
                self.spoil(&self.daemons[which].checkpoint(), fault);
                self.start(which, None);
                return Ok(());
            }
            SoakFault::RefuseSchema | SoakFault::RefuseRows => {
                self.tally.faults += 1;
                let (path, statuses): (_, &[u16]) = match fault {
                    SoakFault::RefuseSchema => ("schema", &[409, 422]),
                    _ => ("changes", &[400, 413, 422, 429, 500, 503]),
                };
                let status = statuses[self.rng.random_range(0..statuses.len())];
                let times = self.rng.random_range(1..4);
                self.fault_proxy
                    .fault(fault_proxy::Fault::status(status).on(path).times(times));
                return Ok(());
            }
            SoakFault::HoldLocks => {
                self.tally.faults += 1;
                let held = Duration::from_millis(self.rng.random_range(100..4000));
                tokio::spawn(hold_locks(self.site.database_url.clone(), held));
                return Ok(());
            }
            SoakFault::SecondReplicator => {
                self.tally.faults += 1;
                match self.running.iter().position(Option::is_none) {
                    Some(which) => self.start(which, None),
                    None => {
                        self.kill();
                    }
                }
                return Ok(());
            }
            SoakFault::Sync | SoakFault::Backfill => {
                self.tally.faults += 1;
                let arguments: &[&str] = match fault {
                    SoakFault::Sync => &["sync"],
                    _ => &["backfill", "--all", "--restart"],
                };
                let which = self.rng.random_range(0..2);
                // The last one, if it still runs, is killed.
                self.command = Some(self.daemons[which].begin(arguments));
                return Ok(());
            }
            SoakFault::CutRequest => Trouble::CutRequest(self.rng.random_range(0..6000)),
            SoakFault::CutAnswer => Trouble::CutAnswer(self.rng.random_range(0..400)),
            SoakFault::HoldAnswers => Trouble::HoldAnswers,
            SoakFault::Stall => Trouble::Stall,
            SoakFault::Slow => Trouble::Slow(
                self.rng.random_range(100..2000),
                Duration::from_millis(self.rng.random_range(1..50)),
            ),
            SoakFault::Refuse => Trouble::Refuse,
        };
        self.tally.faults += 1;
        self.proxy.set(trouble);
        self.pause(100, 2500).await;
        // Sometimes the trouble stays while others come.
        if self.rng.random_bool(0.7) {
            self.proxy.set(Trouble::None);
        }
        Ok(())
    }

    /// SIGTERM to each replicator that runs: each must end in order.
    pub(super) async fn terminate(&mut self) -> Result<(), String> {
        for (run, daemon) in self.running.iter_mut().zip(self.daemons) {
            let Some(Run { mut process, armed }) = run.take() else {
                continue;
            };
            if process.has_ended().is_some() {
                continue;
            }
            self.tally.faults += 1;
            let status = process.terminate().await;
            if !status.success() && !armed {
                return Err(format!("SIGTERM ended in {status}:\n{}", tail(&daemon.log())));
            }
        }
        Ok(())
    }

    /// Deletes a store, or overwrites its files.
    fn spoil(&self, store: &std::path::Path, fault: SoakFault) {
        if fault == SoakFault::DeleteStore {
            let _ = std::fs::remove_dir_all(store);
            return;
        }
        for entry in std::fs::read_dir(store).into_iter().flatten().flatten() {
            if let Ok(about) = entry.metadata()
                && about.is_file()
            {
                let _ = std::fs::write(entry.path(), vec![0xa5; about.len() as usize]);
            }
        }
    }

    /// A question of a moment, to a server that may be away.
    async fn ask(&self, url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(sql).await
    }
}

/// A role that owns nothing takes advisory locks of every form, among them those of small numbers, and an
/// owner of tables locks two of them, for so long.
async fn hold_locks(url: String, held: Duration) {
    let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await else {
        return;
    };
    tokio::spawn(connection);
    let sql = "begin; set local lock_timeout = '1s'; \
               select pg_try_advisory_xact_lock(n), pg_try_advisory_xact_lock_shared(-n) \
               from generate_series(0, 500) n; \
               select pg_try_advisory_xact_lock(n, m) from generate_series(0, 20) n, generate_series(0, \
               20) m; lock table item_log in access exclusive mode; lock table total in share mode";
    if client.batch_execute(sql).await.is_ok() {
        tokio::time::sleep(held).await;
    }
    // A server that crashed has let them go.
    let _ = client.batch_execute("rollback").await;
}
