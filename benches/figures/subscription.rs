//! PostgreSQL's logical replication, the peer that is closest to ours.

use std::net::SocketAddr;
use std::time::Instant;

use tokio_postgres::Client;

use crate::arrival::{self, Arrivals, Destination, Goal, wait};
use crate::load::{self, LoadTable};
use crate::servers::World;
use crate::{Outcome, process};

/// What is published and how it is subscribed to.
pub(crate) struct SubscriptionPlan {
    /// The published table.
    pub(crate) table: LoadTable,
    /// The tables of the publisher and of the subscriber, as SQL.
    pub(crate) tables: [String; 2],
    /// Whether each of the subscriber's commits waits for the disk, as the receiver's do. PostgreSQL's
    /// default is not to wait: the subscriber's log reaches the disk later, and the publisher keeps its own
    /// until then.
    pub(crate) durable: bool,
    /// Through what the subscriber reaches the publisher, where it is not the server itself.
    pub(crate) through: Option<SocketAddr>,
}

impl SubscriptionPlan {
    /// A table of recognition logs, `logs`.
    pub(crate) fn logs() -> Self {
        let table = format!("create table logs ({})", load::COLUMNS);
        Self {
            table: LoadTable::logs("logs"),
            tables: [table.clone(), table],
            durable: false,
            through: None,
        }
    }
}

/// A publication and a subscription to it, in databases of their own, one on the publisher and one on the
/// cloud's server. It is paused unless it was resumed, so that it takes nothing from what is measured at the
/// same time; its slot keeps what is written.
pub(crate) struct Subscription<'a> {
    world: &'a World,
    pub(crate) name: String,
    pub(crate) source: Client,
    pub(crate) cloud: Client,
    /// The backend of `cloud`, which looks for what has arrived.
    observer: u32,
    table: LoadTable,
    arrivals: Arrivals,
}

impl<'a> Subscription<'a> {
    pub(crate) async fn new(world: &'a World, plan: SubscriptionPlan) -> Outcome<Self> {
        let name = world.name("peer");
        world.peer_databases(&name).await?;
        let source = world.publisher.connect(&name).await?;
        let cloud = world.cloud.connect(&name).await?;
        let observer = arrival::backend(&cloud).await?;
        let [published, subscribed] = &plan.tables;
        source.batch_execute(published).await?;
        cloud.batch_execute(subscribed).await?;
        source
            .batch_execute(&format!(
                "create publication figures for table {}",
                plan.table.name
            ))
            .await?;
        let mut url = world.publisher.url(&name);
        if let Some(address) = plan.through {
            url = url.replace(&world.publisher.address().to_string(), &address.to_string());
        }
        let options = if plan.durable {
            " with (synchronous_commit = on)"
        } else {
            ""
        };
        cloud
            .batch_execute(&format!(
                "create subscription {name} connection '{url}' publication figures{options}"
            ))
            .await?;
        wait(
            &cloud,
            "select bool_and(srsubstate = 'r') from pg_subscription_rel",
            &[],
        )
        .await?;
        let peer = Self {
            world,
            name,
            source,
            cloud,
            observer,
            table: plan.table,
            arrivals: Arrivals::new(Destination::Subscriber),
        };
        peer.pause().await?;
        Ok(peer)
    }

    pub(crate) async fn pause(&self) -> Outcome<()> {
        self.alter("disable").await?;
        wait(
            &self.cloud,
            "select count(*) = 0 from pg_stat_subscription where pid is not null",
            &[],
        )
        .await?;
        wait(
            &self.source,
            "select not bool_or(active) from pg_replication_slots where database = current_database()",
            &[],
        )
        .await
    }

    pub(crate) async fn resume(&self) -> Outcome<()> {
        self.alter("enable").await
    }

    /// Resumes, and waits until it has read everything that was written so far.
    pub(crate) async fn resume_and_catch_up(&self) -> Outcome<()> {
        self.resume().await?;
        let goal = self.goal_with_last_row().await?;
        self.reached(&goal).await?;
        Ok(())
    }

    /// The rows that the table has now.
    pub(crate) async fn goal(&self) -> Outcome<Goal> {
        self.arrivals.goal(&self.source, &self.table).await
    }

    /// The same, after one row more, which commits last.
    pub(crate) async fn goal_with_last_row(&self) -> Outcome<Goal> {
        self.arrivals.goal_with_last_row(&self.source, &self.table).await
    }

    /// Waits until these rows are visible at the subscriber; the moment at which they were seen.
    pub(crate) async fn reached(&self, goal: &Goal) -> Outcome<Instant> {
        self.arrivals.reached(&self.cloud, goal).await
    }

    /// The servers' seconds of CPU so far: the publisher's, the cloud's but for the backend that looks.
    pub(crate) fn cpu(&self) -> [f64; 2] {
        let cloud = self.world.cloud.cpu() - process::scheduled(self.observer);
        [self.world.publisher.cpu(), cloud]
    }

    /// The processes of a subscription that is enabled: the publisher's WAL sender, the subscriber's apply
    /// worker.
    pub(crate) async fn processes(&self) -> Outcome<[u32; 2]> {
        let sender = "select pid from pg_stat_replication where application_name = $1";
        let worker = "select pid from pg_stat_subscription where subname = $1 and relid is null";
        let sender: i32 = self.source.query_one(sender, &[&self.name]).await?.get(0);
        let worker: i32 = self.cloud.query_one(worker, &[&self.name]).await?.get(0);
        Ok([u32::try_from(sender)?, u32::try_from(worker)?])
    }

    pub(crate) async fn end(self) -> Outcome<()> {
        self.cloud
            .batch_execute(&format!("drop subscription {}", self.name))
            .await?;
        drop((self.source, self.cloud));
        self.world.forget(&self.name).await
    }

    async fn alter(&self, how: &str) -> Outcome<()> {
        let sql = format!("alter subscription {} {how}", self.name);
        Ok(self.cloud.batch_execute(&sql).await?)
    }
}
