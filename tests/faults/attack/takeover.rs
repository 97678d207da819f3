//! A role that may create objects in schema public, and temporary ones, takes no statement of the program
//! over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::path;
use super::roads::{self, WithChanges};
use super::statements::{self, Sent, Statement, files, statements};
use crate::support::postgres::Server;
use crate::support::site::{Site, connect, entity};

const HOSTILE: &str = include_str!("takeover.sql");

/// What begins like SQL and is none.
const NO_SQL: [&str; 1] = ["with {}"];

/// Statements for the site's database that are not seen in its log.
const UNSEEN: [[&str; 3]; 11] = [
    [
        "sql/source/files.sql: forget_all_references",
        "delete from cloud_sync.media_ref where entity = any($1)",
        "no table with files is truncated here; it names its table with the schema",
    ],
    [
        "sql/source/files.sql: forget_content",
        "update cloud_sync.media m set state = 'waiting', url = null",
        "no cloud here loses a file; it names its table with the schema",
    ],
    [
        "sql/source/files.sql: forget_purged",
        "delete from cloud_sync.media_ref r using",
        "no row with a file is purged here; it names its tables with the schema",
    ],
    [
        "sql/source/files.sql: forget_unnamed_of",
        "with unnamed as (",
        "no row here names another file than before; it names its tables with the schema",
    ],
    [
        "sql/source/files.sql: record_stamps",
        "update cloud_sync.media m set state = 'uploaded', modified_us",
        "no uploaded file is touched here; it names its table with the schema",
    ],
    [
        "sql/source/quarantine.sql: put_off",
        "update cloud_sync.quarantine q set next_attempt = now() + interval '1 hour'",
        "the delivery of the row that was touched just before it may come first, and end it",
    ],
    [
        "sql/source/upload_state.sql: note",
        "with late as ( select path from cloud_sync.media",
        "no file here is so large that it goes in parts; it names its table with the schema",
    ],
    [
        "sql/source/upload_state.sql: in_progress",
        "select path, upload_url, upload_offset, upload_size",
        "no file here is so large that it goes in parts; it names its table with the schema",
    ],
    [
        "src/source/capture.rs",
        "select…",
        "it is found by one word: a row of nulls within each capture function, \
         which a writer's session calls",
    ],
    [
        "src/source/rows.rs",
        "select…",
        "it is found by one word: the casts of a key, sent for the row of z that cannot be read",
    ],
    [
        "sql/source/traffic.sql: note",
        "insert into cloud_sync.traffic as t (day, bytes)",
        "there is no budget here; it names its table with the schema",
    ],
];

/// The same of the receiver's own database.
const UNSEEN_BY_RECEIVER: [[&str; 3]; 7] = [
    [
        "src/receiver/files/tus/record.rs",
        "update cloud_meta.uploads set received = $2, wri",
        "no resumable upload is sent here; it names its table with the schema",
    ],
    [
        "src/receiver/files/tus/record.rs",
        "update cloud_meta.uploads set stored = $2, hash",
        "no resumable upload is sent here; it names its table with the schema",
    ],
    [
        "src/receiver/files/tus/record.rs",
        "delete from cloud_meta.uploads where id = $1",
        "no resumable upload is sent here; it names its table with the schema",
    ],
    [
        "src/receiver/files/tus/record.rs",
        "insert into cloud_meta.uploads as u (id, site, d",
        "no resumable upload is sent here; it names its table with the schema",
    ],
    [
        "src/receiver/files/tus/record.rs",
        "select…from cloud_meta.uploads where id = $1 and",
        "no resumable upload is sent here; it names its table with the schema",
    ],
    [
        "src/receiver/files/tus/sweep.rs",
        "delete from cloud_meta.uploads where id = $1 and",
        "no resumable upload is sent here; it names its table with the schema",
    ],
    [
        "src/receiver/files/tus/sweep.rs",
        "select exists (select from cloud_meta.uploads wh",
        "no resumable upload is sent here; it names its table with the schema",
    ],
];

/// The texts of all Rust and SQL files below a folder of this package.
pub(crate) fn sources(folder: &str) -> Vec<String> {
    fn add(folder: &Path, texts: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(&path, texts);
            } else if path
                .extension()
                .is_some_and(|ending| ending == "rs" || ending == "sql")
            {
                texts.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut texts = Vec::new();
    add(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut texts);
    texts
}

/// Whether a file lies in this folder of the package.
fn is_below(file: &Path, folder: &str) -> bool {
    file.starts_with(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
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

/// Asserts that each statement was sent in one of the sessions, but for these: a file, how the statement
/// begins, and why it was not.
fn covered(whose: &str, statements: &[Statement], sessions: &[&Sent], allowed: &[[&str; 3]]) {
    let unseen = statements::unseen(statements, sessions);
    println!(
        "{whose}: {} statements in the sources, {} sent under attack, {} not:",
        statements.len(),
        statements.len() - unseen.len(),
        unseen.len()
    );
    // One that ends in what is put in is listed whole.
    let fits = |statement: &Statement, [file, beginning, _]: &[&str; 3]| {
        let listed = statement.beginning();
        statement.place.starts_with(file)
            && (listed == *beginning || !beginning.ends_with('…') && listed.starts_with(beginning))
    };
    let reason = |statement: &Statement| {
        allowed
            .iter()
            .find(|one| fits(statement, one))
            .map(|[.., why]| *why)
    };
    let mut missing = Vec::new();
    for statement in &unseen {
        let listed = format!("{}: {}", statement.place, statement.beginning());
        match reason(statement) {
            Some(why) => println!("  {listed}\n    {why}"),
            None => missing.push(listed),
        }
    }
    assert!(
        missing.is_empty(),
        "neither sent under attack nor listed: {missing:#?}"
    );
    for one in allowed {
        let is_there = statements.iter().any(|statement| fits(statement, one));
        assert!(is_there, "there is no {one:?} any more");
    }
    assert!(
        allowed.len() * 100 < statements.len() * 15,
        "{} are listed",
        allowed.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_is_taken_over_by_objects_of_another_role() {
    let server = Server::with(&["log_statement=all", "track_functions=all", statements::PREFIX]);
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
    // and tables that have a column of a type of that role's.
    let site = WithChanges::build(&server).await;
    // When the whole program runs,
    let (baseline, ()) = futures::join!(roads::with_baseline(&server), site.walk());
    let unpinned = site.unpinned().await;
    let mut used = site.end().await;
    used.extend(baseline);
    // then none of the planted objects was called,
    let log = std::fs::read_to_string(server.socket().0.join("log")).unwrap();
    let taken: BTreeSet<&str> = log
        .lines()
        .filter(|line| line.contains("LOG:  taken over by"))
        .collect();
    assert!(taken.is_empty(), "{taken:#?}");
    // every session was among those that the sources know of, with its path pinned by its first statement and
    // left alone,
    let sent = statements::sessions(&log);
    let nameless: Vec<&Sent> = sent
        .iter()
        .filter(|one| one.role == "program" && one.name != "test" && !one.name.starts_with("cloud-sync "))
        .collect();
    assert!(nameless.is_empty(), "{nameless:#?}");
    let ours = || sent.iter().filter(|one| one.name.starts_with("cloud-sync "));
    let wrong: BTreeSet<String> = ours().filter_map(path::wrong).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(unpinned, Vec::<String>::new());
    let seen: BTreeSet<String> = ours()
        .map(|one| one.name["cloud-sync ".len()..].to_owned())
        .collect();
    assert_eq!(
        purposes().difference(&seen).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    let texts: usize = ours().map(|one| one.texts.len()).sum();
    println!(
        "{texts} statements of {} sessions, {} functions planted",
        ours().count(),
        names.len()
    );
    // and each statement of the sources was sent at that time, but for those that are listed.
    let (receiver, site): (Vec<&Sent>, Vec<&Sent>) =
        ours().partition(|one| one.name == "cloud-sync receiver");
    let (delivering, sources): (Vec<PathBuf>, Vec<PathBuf>) = files("src", "rs")
        .into_iter()
        .filter(|file| !is_below(file, "src/demo"))
        .partition(|file| is_below(file, "src/deliver"));
    assert!(!delivering.iter().any(|file| statements::can_send(file)));
    let (at_receiver, at_site): (Vec<PathBuf>, Vec<PathBuf>) = sources
        .into_iter()
        .partition(|file| is_below(file, "src/receiver"));
    covered(
        "site",
        &statements(
            &at_site,
            &["sql/source", "sql/functions", "migrations/source"],
            &NO_SQL,
        ),
        &site,
        &UNSEEN,
    );
    covered(
        "receiver",
        &statements(&at_receiver, &["sql/receiver", "migrations/receiver"], &[]),
        &receiver,
        &UNSEEN_BY_RECEIVER,
    );
    // Nor is there another command.
    used.extend(
        [
            "alerts",
            "token",
            "run",
            "receiver",
            "demo",
            "help",
            "explain",
            "completions",
            "man",
        ]
        .map(str::to_owned),
    );
    assert_eq!(commands(), used);
}

#[tokio::test]
async fn a_condition_that_means_an_operator_of_another_role_is_refused() {
    let role = format!("maker_{}", std::process::id());
    let tables = format!(
        "create table t (id int primary key, kind varchar); create role {role}; grant create on schema \
         public to {role}; set role {role}; \
         create function same(varchar, varchar) returns boolean language plpgsql immutable as 'begin \
         return true; end'; \
         create operator public.= (leftarg = varchar, rightarg = varchar, function = same); reset role"
    );
    // Given an operator that fits a condition better than PostgreSQL's own
    let config = entity("x", "t", &["id"], "where = \"kind = 'public'\"");
    let message = Site::refusal("maker", &tables, &config).await;
    // then it is named, with its owner and what to write.
    crate::support::says(
        &message,
        &[
            "operator public.=(character varying,character varying)",
            &role,
            "operator(pg_catalog.=)",
        ],
    );
}
