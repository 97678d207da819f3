//! The roads of the program that send SQL to the site's database, walked while objects of another role lie on
//! its search path: one site whose cloud is the receiver, and one whose cloud knows the baseline calls only.

use std::cell::RefCell;
use std::collections::BTreeSet;

use axum::http::Method;
use cloud_sync::control::{Operator, StatusReport};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::baseline::{self, BaselineServer};
use crate::support::baseline::{Names, Quirks};
use crate::support::fault::Fault;
use crate::support::fault_proxy::FaultProxy;
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Running, Site, connect, entity, until_whole};
use crate::support::sql::until;

/// A URL with this role in the place of the superuser; its sessions are called `test` unless they say
/// otherwise.
pub(super) fn as_role(url: &str, role: &str) -> String {
    format!(
        "{}?application_name=test",
        url.replace("postgres@", &format!("{role}@"))
    )
}

/// A session of the superuser's that no planted object disturbs.
async fn looker(url: &str) -> Client {
    let client = connect(url).await;
    client
        .batch_execute("set search_path = pg_catalog, pg_temp")
        .await
        .unwrap();
    client
}

async fn run(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// The command line of a site, and what was asked of it.
struct Commands {
    daemon: Daemon,
    used: RefCell<BTreeSet<String>>,
}

impl Commands {
    fn of(site: &Site) -> Self {
        Self {
            daemon: Daemon::of(site, "store"),
            used: RefCell::default(),
        }
    }

    /// Runs one, which must succeed, and end in time.
    async fn ask(&self, arguments: &[&str]) {
        self.used.borrow_mut().insert(arguments[0].to_owned());
        let status = self.daemon.begin(arguments).ended(LIMIT).await;
        assert!(status.success(), "{arguments:?}: {}", self.daemon.log());
    }
}

/// Waits until so many rows are in quarantine.
async fn quarantined(running: &Running, rows: u64) {
    running
        .until(&format!("{rows} rows in quarantine"), |status| {
            status.quarantine == Some(rows)
        })
        .await;
}

/// Whether something is said of this entity's capture.
fn is_told(status: &StatusReport, entity: &str) -> bool {
    status.capture.iter().any(|trouble| trouble.entity == entity)
}

/// A receiver that re-creates its schemas as a role on whose path the planted objects come first; and a look
/// into them.
async fn attacked(server: &Server, hint: &str, history: bool) -> (Cloud, Client) {
    let mut cloud = Cloud::start_on(server, hint).await;
    cloud.away().await;
    let there = looker(&cloud.database_url).await;
    run(
        &there,
        "drop schema cloud cascade; drop schema cloud_meta cascade",
    )
    .await;
    cloud.set_database(as_role(&cloud.database_url, "program"));
    cloud.set_history(history);
    cloud.back().await;
    (cloud, there)
}

/// A site before the receiver.
pub(super) struct WithChanges<'a> {
    server: &'a Server,
    cloud: Cloud,
    database_url: String,
    fault_proxy: FaultProxy,
    site: Site,
    /// The superuser's own sessions with both databases.
    here: Client,
    there: Client,
    commands: Commands,
}

impl<'a> WithChanges<'a> {
    /// Tables that have a column of a type of the other role's, and the receiver behind a fault_proxy.
    pub(super) async fn build(server: &'a Server) -> Self {
        let (cloud, there) = attacked(server, "taken", true).await;
        let fault_proxy = FaultProxy::before(&cloud.url).await;
        let database = server.database("taken_site").await;
        let tables = "
            create table t (id pg_catalog.int4 primary key, kind varchar, v pg_catalog.text, m public.mood,
                            file varchar, url varchar);
            create table u (a varchar, b public.mood, primary key (a, b));
            create table w (id bigint primary key, v pg_catalog.text);
            create table z (id int primary key, n int);
            create table part (id int primary key, v pg_catalog.text) partition by range (id);
            create table part_1 partition of part for values from (0) to (100);
            create table part_9 partition of part for values from (1000) to (2000);
            grant all on t, u to writer;
            insert into t values (1, 'public', 'one', 'fine', 'a.jpg', null),
                                 (2, 'private', 'two', 'bad', null, null);
            insert into u values ('a', 'fine');
            insert into part values (1, 'first')";
        let config = [
            entity(
                "x",
                "t",
                &["id"],
                "where = \"kind operator(pg_catalog.=) 'public'\"\n\
                 files = [{ column = \"file\", url_column = \"url\", directory = \"files\" }]",
            ),
            entity("y", "u", &["a", "b"], ""),
            entity("w", "w", &["id"], ""),
            entity(
                "z",
                "z",
                &["id"],
                "where = \"(10 operator(pg_catalog./) n) operator(pg_catalog.>) 0\"",
            ),
            entity("part", "part", &["id"], ""),
        ];
        let site = Site::at(
            as_role(&database, "program"),
            &fault_proxy.url(),
            KEY,
            tables,
            &config.concat(),
        )
        .await;
        std::fs::write(site.media().join("a.jpg"), "a").unwrap();
        Self {
            here: looker(&database).await,
            commands: Commands::of(&site),
            server,
            cloud,
            database_url: database,
            fault_proxy,
            site,
            there,
        }
    }

    /// The roads on which the server stays up.
    pub(super) async fn walk(&self) {
        self.commands().await;
        let running = self.site.replicate_monitoring_drift();
        running.caught_up().await;
        self.files(&running).await;
        self.many_rows(&running).await;
        self.refused_rows(&running).await;
        self.failing_rows(&running).await;
        self.changed_tables(&running).await;
        self.refused_schema(&running).await;
        self.receiver(&running).await;
        running.end().await;
    }

    /// The functions in the site's database that run in a writer's session with the writer's search path; but
    /// for those of capture, whose cost counts: they name whatever they use with its schema, and a writer's
    /// session calls each of them.
    pub(super) async fn unpinned(&self) -> Vec<String> {
        let sql = "select p.oid::regprocedure::text from pg_proc p \
                   where p.pronamespace = 'cloud_sync'::regnamespace and p.proname !~ '^capture_[0-9]' \
                   and not coalesce('search_path=pg_catalog, pg_temp' = any(p.proconfig), false)";
        let rows = self.here.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The last roads, on which the server crashes. Returns the commands that were used on any.
    pub(super) async fn end(mut self) -> BTreeSet<String> {
        self.other_lives().await;
        self.commands.ask(&["uninstall"]).await;
        self.commands.used.into_inner()
    }

    /// Each command, with a daemon running and without one, while a role writes whose own temporary objects
    /// have names of ours.
    async fn commands(&self) {
        let Self {
            commands,
            site,
            there,
            ..
        } = self;
        commands.ask(&["init"]).await;
        for arguments in [
            &["upgrade", "--check"][..],
            &["upgrade"],
            &["backfill", "--all"],
            &["sync"],
            &["check"],
        ] {
            commands.ask(arguments).await;
        }
        let daemon = &commands.daemon;
        let process = daemon.start();
        daemon.caught_up().await;
        let writer = connect(&site.database_url.replace("program@", "writer@")).await;
        writer
            .batch_execute(
                "set application_name = 'writer';
                 create temp table outbox (id pg_catalog.int4);
                 create temp table pg_class (id pg_catalog.int4);
                 create temp table entity (id pg_catalog.int4);
                 create type pg_temp.int8 as enum ('taken');
                 create type pg_temp.bigint as enum ('taken');
                 set search_path = pg_temp, public, pg_catalog;
                 insert into t values (3, 'public', 'three', 'bad', 'a.jpg', null),
                                      (4, 'public', null, null, null, null);
                 update t set v = 'four';
                 delete from u;
                 insert into u values ('b', 'bad'), ('c', 'fine');
                 truncate u;
                 insert into u values ('d', 'bad')",
            )
            .await
            .unwrap();
        // Each capture function, those of the row triggers too, which fire in a role of replication only.
        let replica = connect(&self.database_url).await;
        let events = "insert into public.w select 1, 'a'; update public.w set v = 'b'; delete from public.w; \
                      truncate public.w; update public.u set a = 'f'; delete from public.u; \
                      insert into public.u values ('d', 'bad')";
        run(
            &replica,
            &format!(
                "set application_name = 'writer'; set search_path = public, pg_catalog; {events}; \
                 set session_replication_role = replica; {events}"
            ),
        )
        .await;
        let all_called = "select count(*) filter (where calls > 0) = 10 from pg_stat_user_functions \
                          where funcname ~ '^capture_[23]_'";
        until(&self.here, all_called).await;
        daemon.caught_up().await;
        for arguments in [
            &["sync", "--force"][..],
            &["backfill", "--all", "--restart"],
            &["status"],
            &["check"],
            &["setup", "--dry-run"],
            &["why", "x", "1"],
            &["quarantine", "list"],
            &["files", "list", "--state", "uploaded"],
            &["config"],
            &["pause", "--entity", "w"],
            &["pause", "--files"],
            &["pause"],
            &["resume"],
            &["resume", "--files"],
            &["resume", "--entity", "w"],
        ] {
            commands.ask(arguments).await;
        }
        commands.daemon.caught_up().await;
        assert!(process.terminate().await.success());
        commands.ask(&["status"]).await;
        self.run("insert into public.u values ('g', 'fine')").await;
        commands.ask(&["replay", "--from", "0"]).await;
        let process = commands.daemon.start();
        commands.daemon.caught_up().await;
        assert!(process.terminate().await.success());
        let rows: Vec<String> = there
            .query(
                "select format('%s %s %s', id, kind, m) from cloud.x order by id",
                &[],
            )
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        assert_eq!(rows, ["1 public fine", "3 public bad", "4 public "]);
    }

    async fn run(&self, sql: &str) {
        run(&self.here, sql).await;
    }

    /// Many at once, one that comes late, one that changes, one that the cloud refuses.
    async fn files(&self, running: &Running) {
        let write = |name: &str, text: &str| std::fs::write(self.site.media().join(name), text).unwrap();
        for nth in 0..20 {
            write(&format!("{nth}.jpg"), &nth.to_string());
        }
        self.fault_proxy.fault(Fault::status(422).on("upload").times(1));
        self.run(
            "insert into public.t select n, 'public', 'f', 'fine', format('%s.jpg', n), null \
             from generate_series(5, 19) n; \
             insert into public.t values (50, 'public', 'late', 'fine', 'late.jpg', null)",
        )
        .await;
        running
            .until("a file is missing", |status| status.files.missing == 1)
            .await;
        write("late.jpg", "late");
        write("a.jpg", "another");
        let uploaded = "select count(*) filter (where state = 'uploaded') >= 15 \
                        and bool_or(path = 'late.jpg' and state = 'uploaded') \
                        and bool_or(path = 'a.jpg' and state = 'uploaded' and size = 7) \
                        from cloud_sync.media";
        until(&self.here, uploaded).await;
        running.caught_up().await;
    }

    /// More than one page of the outbox, whose space then goes back to the disk.
    async fn many_rows(&self, running: &Running) {
        self.run("insert into public.w select n, 'many' from generate_series(1, 12000) n")
            .await;
        running.caught_up().await;
        until(&self.there, "select count(*) = 12000 from cloud.w").await;
        let empty = "select sum(pg_relation_size(inhrelid)) = 0 from pg_inherits \
                     where inhparent = 'cloud_sync.outbox'::regclass";
        until(&self.here, empty).await;
    }

    /// Rows that the cloud refuses and that cannot be read, and every decision on them.
    async fn refused_rows(&self, running: &Running) {
        self.there
            .batch_execute("alter table cloud.w add check (v <> 'bad')")
            .await
            .unwrap();
        let bad = async |id: i32| {
            self.run(&format!("insert into public.w values ({id}, 'bad')"))
                .await;
            quarantined(running, 1).await;
            let told = running
                .replicator
                .overview(true)
                .await
                .source
                .expect("the source answers");
            assert_eq!(told.quarantine.len(), 1, "{told:?}");
            let position = "select position::text from cloud_sync.quarantine";
            self.here
                .query_one(position, &[])
                .await
                .unwrap()
                .get::<_, String>(0)
        };
        let position = bad(20_001).await;
        for action in ["show", "retry"] {
            self.commands.ask(&["quarantine", action, &position]).await;
        }
        self.commands.ask(&["quarantine", "list"]).await;
        self.commands.ask(&["quarantine", "retry", "--all"]).await;
        running.caught_up().await;
        self.run("update public.w set v = 'good' where id = 20001").await;
        quarantined(running, 0).await;
        let position = bad(20_002).await;
        self.commands.ask(&["quarantine", "discard", &position]).await;
        bad(20_003).await;
        self.commands.ask(&["quarantine", "discard", "--all"]).await;
        bad(20_004).await;
        self.run("truncate public.w").await;
        quarantined(running, 0).await;
        self.run("insert into public.z values (1, 0), (2, 3)").await;
        quarantined(running, 1).await;
        self.run("update public.z set n = 1").await;
        quarantined(running, 0).await;
    }

    /// A row that gets 500 until it is touched again in a batch of its own.
    async fn failing_rows(&self, running: &Running) {
        let fault = Fault::status(500).on("changes").when(|row| row["v"] == "fails");
        self.fault_proxy.fault(fault);
        self.run("insert into public.w values (30001, 'fails')").await;
        quarantined(running, 1).await;
        self.run("insert into public.w values (30002, 'well')").await;
        until(&self.there, "select count(*) = 1 from cloud.w where id = 30002").await;
        self.fault_proxy.clear_faults();
        quarantined(running, 0).await;
    }

    /// A partition that was written to before, a table of another name, and rows that no trigger saw.
    async fn changed_tables(&self, running: &Running) {
        self.run(
            "create table public.part_2 (id int primary key, v pg_catalog.text); \
             insert into public.part_2 values (101, 'before'); \
             alter table public.part attach partition public.part_2 for values from (100) to (200)",
        )
        .await;
        until(&self.there, "select count(*) = 2 from cloud.part").await;
        self.run("alter table public.u rename to u_2").await;
        running.until("renamed", |status| is_told(status, "y")).await;
        self.run("alter table public.u_2 rename to u").await;
        running
            .until("named again", |status| status.capture.is_empty())
            .await;
        self.run("alter table public.w disable trigger all; insert into public.w values (40001, 'unseen')")
            .await;
        running.until("unseen", |status| is_told(status, "w")).await;
        self.commands.ask(&["init"]).await;
        until(&self.there, "select count(*) = 1 from cloud.w where v = 'unseen'").await;
        until_whole(&self.site, running).await;
    }

    /// An entity is parked for its schema, and no longer.
    async fn refused_schema(&self, running: &Running) {
        self.fault_proxy
            .fault(Fault::status(422).method(Method::PUT).on("schema/w"));
        self.run("alter table public.w add column n int; insert into public.w values (50001, 'kept', 1)")
            .await;
        running.until("parked", |status| is_told(status, "w")).await;
        running.caught_up().await;
        self.fault_proxy.clear_faults();
        running
            .until("no longer parked", |status| status.capture.is_empty())
            .await;
        until(&self.there, "select count(*) = 1 from cloud.w where v = 'kept'").await;
        running.caught_up().await;
    }

    /// What only the receiver knows: rows that are copied, a column that becomes wider, and the calls of
    /// other clients.
    async fn receiver(&self, running: &Running) {
        self.run("insert into public.part select n, 'copied' from generate_series(1001, 1500) n")
            .await;
        running.caught_up().await;
        self.run(
            "alter table public.w alter column n type bigint; \
             insert into public.w values (50002, 'wider', 1)",
        )
        .await;
        until(&self.there, "select count(*) = 1 from cloud.w where v = 'wider'").await;
        running.caught_up().await;
        let ask = async |method: Method, path: &str, body: Value| {
            let url = format!("http://{}/{path}", self.cloud.address());
            let request = reqwest::Client::new().request(method, url).bearer_auth(KEY);
            request.json(&body).send().await.unwrap().status().as_u16()
        };
        let row = |id: i32, v: &str| json!({"id": id, "v": v});
        assert_eq!(ask(Method::GET, "healthz", Value::Null).await, 200);
        assert_eq!(ask(Method::POST, "api/w", row(70_001, "posted")).await, 200);
        let records = json!({"records": [row(70_002, "good"), row(70_003, "bad")]});
        assert_eq!(ask(Method::POST, "api/bulk/w", records).await, 422);
        for id in [70_001, 70_002] {
            ask(Method::DELETE, &format!("api/w/{id}"), Value::Null).await;
        }
    }

    /// The outbox on another server by word, a lost store, another cloud, another epoch, and a crash.
    async fn other_lives(&mut self) {
        self.run("insert into public.w values (60001, 'later', 1)").await;
        self.commands
            .ask(&["replay", "--from", "2020-01-01T00:00:00Z"])
            .await;
        self.commands.ask(&["init", "--same-outbox"]).await;
        self.once(60_002).await;
        std::fs::remove_dir_all(&self.site.settings.store.path).unwrap();
        self.once(60_003).await;
        let (other, _) = attacked(self.server, "other", false).await;
        let (before, after) = (self.fault_proxy.url(), other.url.clone());
        self.site.reconfigure(&before, &after);
        self.once(60_004).await;
        self.site.reconfigure(&after, &before);
        self.once(60_005).await;
        self.commands.ask(&["init", "--new-epoch"]).await;
        self.once(60_006).await;
        self.server.restart("QUIT");
        self.here = looker(&self.database_url).await;
        self.once(60_007).await;
    }

    /// A replicator that sends a row, and compares what is to be compared.
    async fn once(&self, id: i32) {
        self.run(&format!("insert into public.w values ({id}, 'once', 1)"))
            .await;
        let running = self.site.replicate_monitoring_drift();
        until_whole(&self.site, &running).await;
        running.end().await;
    }
}

/// A site before a server that knows the baseline calls, and delete. Returns the commands that were used.
pub(super) async fn with_baseline(server: &Server) -> BTreeSet<String> {
    let database = server.database("baseline_site").await;
    let tables = "create table p (id int primary key, v pg_catalog.text); \
                  create table c (id int primary key, p int references p, v pg_catalog.text); \
                  create table x (id int primary key, kind varchar); \
                  create table f (id int primary key, picture pg_catalog.text)";
    let config = [
        entity("p", "p", &["id"], ""),
        entity("c", "c", &["id"], ""),
        entity(
            "x",
            "x",
            &["id"],
            "where = \"kind operator(pg_catalog.=) 'public'\"",
        ),
        entity(
            "f",
            "f",
            &["id"],
            "files = [{ column = \"picture\", url_column = \"url\", directory = \"pictures\" }]",
        ),
    ];
    let nowhere = "http://127.0.0.1:9/api";
    let url = as_role(&database, "program");
    let mut site = Site::at(url, nowhere, baseline::KEY, tables, &config.concat()).await;
    let mut quirks = Quirks::from(&["delete"]);
    quirks.uploads.as_mut().unwrap().names = Names::BaseName;
    let cloud = BaselineServer::start(&site.settings.catalogue, quirks).await;
    site.reconfigure(nowhere, &cloud.url());
    site.reconfigure("timeout = \"5s\"", "timeout = \"1s\"");
    let here = looker(&database).await;
    let commands = Commands::of(&site);
    commands.ask(&["init"]).await;
    let running = site.replicate_monitoring_drift();
    // A child that waits in quarantine for its parent,
    cloud.require("c", "p", "p", "id");
    cloud.fault(Fault::status(422).on("p").when(|row| row["v"] == "bad"));
    run(
        &here,
        "insert into public.p values (1, 'bad'); insert into public.c values (1, 1, 'child')",
    )
    .await;
    quarantined(&running, 2).await;
    run(&here, "update public.p set v = 'good'").await;
    quarantined(&running, 0).await;
    // a row that no longer meets its condition, and one that never did,
    run(&here, "insert into public.x values (1, 'public'), (2, 'private')").await;
    running.caught_up().await;
    run(
        &here,
        "update public.x set kind = 'private' where id = 1; update public.x set kind = 'secret' where id = 2",
    )
    .await;
    running.caught_up().await;
    assert_eq!(cloud.count("x"), 0);
    // one that is set aside by hand,
    commands.ask(&["quarantine", "add", "x", "3"]).await;
    commands.ask(&["quarantine", "retry", "--all"]).await;
    run(&here, "insert into public.x values (3, 'public')").await;
    quarantined(&running, 0).await;
    // files that get one address,
    for folder in ["a", "b"] {
        std::fs::create_dir(site.media().join(folder)).unwrap();
        std::fs::write(site.media().join(folder).join("x.jpg"), folder).unwrap();
    }
    run(
        &here,
        "insert into public.f values (1, 'a/x.jpg'), (2, 'b/x.jpg')",
    )
    .await;
    let parted = "select count(*) = 2 and count(sent_as) = 1 from cloud_sync.media where state = 'uploaded'";
    until(&here, parted).await;
    // and a request without an answer.
    cloud.fault(Fault::stall().on("c").method(Method::POST).times(1));
    run(&here, "insert into public.c values (2, 1, 'late')").await;
    until(&here, "select exists (select from cloud_sync.unanswered)").await;
    until(&here, "select not exists (select from cloud_sync.unanswered)").await;
    running.caught_up().await;
    assert_eq!(cloud.count("c"), 2);
    running.end().await;
    for arguments in [
        &["check"][..],
        &["backfill", "--all"],
        &["sync"],
        &["sync", "--force"],
        &["uninstall"],
    ] {
        commands.ask(arguments).await;
    }
    commands.used.into_inner()
}
