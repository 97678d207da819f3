//! A role that may create objects in schema public, and temporary ones, takes no statement of the program
//! over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::cases::entity;
use crate::support::postgres::Server;
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, Site, connect};

const HOSTILE: &str = include_str!("takeover.sql");

/// The first statement of a session with the site's database.
const PINNED: &str = "select pg_catalog.set_config('cloud_sync.path'";

/// Every statement that sets the path, beside the pin. Migrations make their tables in the schema that comes
/// first; only a condition of the site's is parsed with the site's own path, and nothing is run meanwhile.
const PATHS: [&str; 4] = [
    "set search_path = cloud_sync, pg_temp",
    "lock table cloud_meta.migrating in exclusive mode; set local search_path = cloud_meta, pg_temp",
    "begin; create temporary table t (like ",
    "set local search_path = pg_catalog, pg_temp",
];

/// The texts of all files below a folder of this package.
pub(crate) fn sources(folder: &str) -> Vec<String> {
    fn add(folder: &Path, texts: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(&path, texts);
            } else {
                texts.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut texts = Vec::new();
    add(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut texts);
    texts
}

/// What the sources name their sessions.
fn purposes() -> BTreeSet<String> {
    let mut purposes = BTreeSet::from(["questions".to_owned(), "receiver".to_owned()]);
    for text in sources("src") {
        for opened in ["Session::open(", "connect(settings,"] {
            for (at, _) in text.match_indices(opened) {
                let call = text[at..].split([';', '?']).next().unwrap_or_default();
                purposes.extend(call.split('"').nth(1).map(str::to_owned));
            }
        }
    }
    purposes
}

/// The commands of the command line.
fn commands() -> BTreeSet<String> {
    let help = Command::new(env!("CARGO_BIN_EXE_cloud-sync"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, list) = help.split_once("Commands:\n").unwrap();
    list.lines()
        .map_while(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_is_taken_over_by_objects_of_another_role() {
    let server = Server::with(&["log_statement=all", "log_line_prefix=<%p|%a|"]);
    let template = connect(&server.url("template1")).await;
    // Given planted objects wherever the program works, a role of its own whose path names them first,
    let texts: Vec<String> = ["src", "sql", "migrations"]
        .into_iter()
        .flat_map(sources)
        .collect();
    let rows = template
        .query(
            "select distinct proname::text from pg_proc where pronamespace = 'pg_catalog'::regnamespace",
            &[],
        )
        .await
        .unwrap();
    let names: Vec<String> = rows
        .iter()
        .map(|row| row.get::<_, String>(0))
        .filter(|name| name.len() > 2 && texts.iter().any(|text| text.contains(&format!("{name}("))))
        .map(|name| format!("'{name}'"))
        .collect();
    template
        .batch_execute(&HOSTILE.replace("{names}", &names.join(", ")))
        .await
        .unwrap();
    template
        .batch_execute(
            "create role program superuser login; alter role program set search_path = public, pg_catalog; \
             create role writer login",
        )
        .await
        .unwrap();
    drop(template);
    let of = |url: &str, role: &str| url.replace("postgres@", &format!("{role}@"));
    let mut cloud = Cloud::start_on(&server, "taken").await;
    cloud.away().await;
    let there = connect(&cloud.database_url).await;
    there
        .batch_execute("set search_path = pg_catalog, pg_temp; drop schema cloud cascade; drop schema cloud_meta cascade")
        .await
        .unwrap();
    cloud.set_database(of(&cloud.database_url, "program"));
    cloud.back().await;
    // and tables that have a column of a type of that role's.
    let database = server.database("taken_site").await;
    let tables = "create table t (id pg_catalog.int4 primary key, kind varchar, v pg_catalog.text, m public.mood, file varchar, url varchar);
        create table u (a varchar, b public.mood, primary key (a, b)); grant all on t, u to writer;
        insert into t values (1, 'public', 'one', 'fine', 'a.jpg', null), (2, 'private', 'two', 'bad', null, null);
        insert into u values ('a', 'fine')";
    let config = entity(
        "x",
        "t",
        &["id"],
        "where = \"kind operator(pg_catalog.=) 'public'\"\nfiles = [{ column = \"file\", url_column = \"url\", directory = \"files\" }]",
    ) + &entity("y", "u", &["a", "b"], "");
    let site = Site::at(of(&database, "program"), &cloud.url, KEY, tables, &config).await;
    std::fs::write(site.media().join("a.jpg"), "a").unwrap();
    let daemon = Daemon::of(&site, "store");
    let mut used = BTreeSet::new();
    let mut ask = |arguments: &[&str]| {
        used.insert(arguments[0].to_owned());
        let output = daemon.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // When the whole program runs, and a role writes whose own temporary objects have names of ours,
    ask(&["init"]);
    ask(&["check"]);
    ask(&["backfill", "--all"]);
    ask(&["sync"]);
    let process = daemon.start();
    daemon.caught_up().await;
    let writer = connect(&of(&database, "writer")).await;
    writer
        .batch_execute(
            "set application_name = 'writer'; create temp table outbox (id pg_catalog.int4); create temp table pg_class (id pg_catalog.int4); \
             create temp table entity (id pg_catalog.int4); create type pg_temp.int8 as enum ('taken'); create type pg_temp.bigint as enum ('taken'); \
             set search_path = pg_temp, public, pg_catalog; insert into t values (3, 'public', 'three', 'bad', 'a.jpg', null), (4, 'public', null, null, null, null); \
             update t set v = 'four'; delete from u; insert into u values ('b', 'bad'), ('c', 'fine'); truncate u; insert into u values ('d', 'bad')",
        )
        .await
        .unwrap();
    daemon.caught_up().await;
    for arguments in [
        &["sync", "--force"][..],
        &["backfill", "--all", "--restart"],
        &["status"],
        &["check"],
        &["quarantine", "list"],
        &["config"],
    ] {
        ask(arguments);
    }
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    ask(&["status"]);
    ask(&["replay", "--from", "0"]);
    let process = daemon.start();
    daemon.caught_up().await;
    assert!(process.terminate().await.success());
    let rows: Vec<String> = there
        .query(
            "select pg_catalog.format('%s %s %s', id, kind, m) from cloud.x order by id",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(rows, ["1 public fine", "3 public bad", "4 public "]);
    ask(&["uninstall"]);
    // then none of the planted objects was called,
    let log = std::fs::read_to_string(server.socket().0.join("log")).unwrap();
    let taken: BTreeSet<&str> = log
        .lines()
        .filter(|line| line.contains("LOG:  taken over by"))
        .collect();
    assert!(taken.is_empty(), "{taken:#?}");
    let here = connect(&database).await;
    for client in [&here, &there] {
        let row = client
            .query_one("select is_called from attack.calls", &[])
            .await
            .unwrap();
        assert!(!row.get::<_, bool>(0));
    }
    // and every session that the sources know of was among those, its path pinned by its first statement and
    // left alone.
    let mut sessions: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in log.lines() {
        let Some((process, rest)) = line.strip_prefix('<').and_then(|line| line.split_once('|')) else {
            continue;
        };
        let Some((name, message)) = rest.split_once('|') else {
            continue;
        };
        let Some(purpose) = name.strip_prefix("cloud-sync ") else {
            continue;
        };
        let statement = ["LOG:  statement: ", "LOG:  execute "]
            .iter()
            .find_map(|kind| message.strip_prefix(kind));
        let Some(statement) = statement else { continue };
        let count = sessions.entry((process, purpose)).or_default();
        *count += 1;
        if *count == 1 && purpose != "receiver" {
            assert!(statement.starts_with(PINNED), "{purpose}: {statement}");
        } else if statement.contains("search_path") && !statement.contains("create") {
            let known = PATHS.iter().any(|path| statement.starts_with(path));
            assert!(known, "{purpose}: {statement}");
        }
    }
    let seen: BTreeSet<String> = sessions
        .keys()
        .map(|(_, purpose)| (*purpose).to_owned())
        .collect();
    assert_eq!(
        purposes().difference(&seen).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    let statements: usize = sessions.values().sum();
    println!(
        "{statements} statements of {} sessions, {} functions planted",
        sessions.len(),
        names.len()
    );
    // Nor is there another command.
    used.extend(["run", "receiver", "demo", "help"].map(str::to_owned));
    assert_eq!(commands(), used);
}

#[tokio::test]
async fn a_condition_that_means_an_operator_of_another_role_is_refused() {
    let role = format!("maker_{}", std::process::id());
    let tables = format!(
        "create table t (id int primary key, kind varchar); create role {role}; grant create on schema public to {role}; set role {role}; \
         create function same(varchar, varchar) returns boolean language plpgsql immutable as 'begin return true; end'; \
         create operator public.= (leftarg = varchar, rightarg = varchar, function = same); reset role"
    );
    // Given an operator that fits a condition better than PostgreSQL's own
    let config = entity("x", "t", &["id"], "where = \"kind = 'public'\"");
    let said = crate::cases::refusal("maker", &tables, &config).await;
    // then it is named, with its owner and what to write.
    crate::cases::says(
        &said,
        &[
            "operator public.=(character varying,character varying)",
            &role,
            "operator(pg_catalog.=)",
        ],
    );
}
