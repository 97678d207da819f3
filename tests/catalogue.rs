//! The catalogue that the site's database completes: patterns of tables, keys and names that are left out, the
//! order, private columns, and every fault at once.

use crate::support::process::Daemon;
use crate::support::says;
use crate::support::site::{Cloud, KEY, NOWHERE, Site, connect, entity};
use crate::support::sql::{texts, until};

const TABLES: &str = "
    create schema sales;
    create table audit_log (id bigint primary key, note text);
    create table author (id bigint primary key, name text, password_hash text, \"apiKey\" text);
    create table book (id bigint primary key, author_id bigint not null references author, title text);
    create table \"Odd Name\" (\"Key\" text primary key, n int);
    create table sales.book (sku text not null unique, price numeric, book_id bigint references book (id));
    create table session_store (session_key text primary key, data text);
    create table changes (id int primary key);
    create view seen as select id from book;
    create table part (id bigint primary key) partition by range (id);
    create table part_1 partition of part for values from (0) to (100);";

fn patterns(list: &str, more: &str) -> String {
    format!("[catalogue]\ntables = {list}\n{more}")
}

/// What the command line prints, and its exit code.
fn ask(daemon: &Daemon, arguments: &[&str]) -> (String, Option<i32>) {
    let output = daemon.ask(arguments);
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_take_tables_with_their_keys_and_leave_private_columns_at_the_site() {
    let cloud = Cloud::start("patterns").await;
    let config = patterns(
        r#"["*.*", "!public.audit_*"]"#,
        "[[entity]]\ntable = \"book\"\nexclude = [\"title\"]\n",
    );
    let site = Site::bare("patterns", &cloud.url, KEY, TABLES, &config).await;
    let daemon = Daemon::of(&site, "store");
    let (printed, code) = ask(&daemon, &["init"]);
    assert_eq!(code, Some(0), "{printed}");
    says(
        &printed,
        &[
            "author ",
            "book ",
            "Odd_Name ",
            "sales_book ",
            "changes ",
            "part ",
        ],
    );
    assert!(
        !printed.contains("audit") && !printed.contains("session_store"),
        "{printed}"
    );
    let (printed, _) = ask(&daemon, &["check"]);
    says(
        &printed,
        &[
            "table public.session_store is not replicated",
            "its key column session_key looks private",
            "6 entities fit their tables",
        ],
    );
    assert!(!printed.contains("WRONG"), "{printed}");
    let running = daemon.start();
    site.run(
        "insert into author values (1, 'Ada', 'x-secret-x', 'k-secret-k'); insert into book values (1, 1, 'T'); \
         insert into \"Odd Name\" values ('a', 1); insert into sales.book values ('s', 1.50, 1); \
         insert into changes values (1); insert into part values (7); insert into audit_log values (1)",
    )
    .await;
    daemon.caught_up().await;
    let held = connect(&cloud.database_url).await;
    for (sql, wanted) in [
        ("select name from cloud.author", "Ada"),
        ("select author_id::text from cloud.book", "1"),
        ("select \"Key\" from cloud.\"Odd_Name\"", "a"),
        ("select price::text from cloud.sales_book", "1.50"),
        ("select id::text from cloud.changes", "1"),
        ("select id::text from cloud.part", "7"),
    ] {
        assert_eq!(texts(&held, sql).await, [wanted], "{sql}");
    }
    // A private column that comes later stays at the site too.
    site.run("alter table author add reset_token text default 't-secret-t'")
        .await;
    site.run("update author set name = 'Ada L.', reset_token = 't-secret-t'")
        .await;
    until(
        &held,
        "select count(*) = 1 from cloud.author where name = 'Ada L.'",
    )
    .await;
    let columns = "select string_agg(column_name, ',' order by ordinal_position) from information_schema.columns \
         where table_schema = 'cloud' and column_name !~ '^_' and table_name = ";
    assert_eq!(texts(&held, &format!("{columns}'author'")).await, ["id,name"]);
    assert_eq!(texts(&held, &format!("{columns}'book'")).await, ["id,author_id"]);
    running.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_after_init_is_told_and_stops_nothing() {
    let cloud = Cloud::start("late").await;
    let tables = "create table a (id int primary key)";
    let mut site = Site::bare("late", &cloud.url, KEY, tables, &patterns("[\"public.*\"]", "")).await;
    let daemon = Daemon::of(&site, "store");
    assert_eq!(ask(&daemon, &["init"]).1, Some(0));
    site.run("create table b (id int primary key); insert into b values (1)")
        .await;
    let running = daemon.start();
    site.run("insert into a values (1)").await;
    let held = connect(&cloud.database_url).await;
    daemon.caught_up().await;
    assert_eq!(texts(&held, "select id::text from cloud.a").await, ["1"]);
    says(&daemon.log(), &["public.b", "not captured", "cloud-sync init"]);
    let (printed, code) = ask(&daemon, &["check"]);
    says(
        &printed,
        &["WRONG", "public.b came after the last `cloud-sync init`"],
    );
    assert_eq!(code, Some(2));
    running.terminate().await;
    assert_eq!(ask(&daemon, &["init"]).1, Some(0));
    assert_eq!(ask(&daemon, &["sync"]).1, Some(0));
    assert_eq!(texts(&held, "select id::text from cloud.b").await, ["1"]);
    // With other patterns, nothing of them is captured yet.
    site.run("create table c (id int primary key)").await;
    site.reconfigure("public.*", "public.c");
    let (printed, code) = ask(&daemon, &["sync"]);
    says(
        &printed,
        &[
            "no table that catalogue.tables takes is captured",
            "cloud-sync init",
        ],
    );
    assert_eq!(code, Some(2));
}

#[tokio::test]
async fn parents_come_first_in_any_order_and_a_circle_is_broken_where_a_child_can_wait() {
    let tables = "create table a (id int primary key, b_id int);
         create table b (id int primary key, a_id int not null references a);
         create table c (id int primary key, b_id int not null references b);
         alter table a add foreign key (b_id) references b";
    let config: String = ["c", "b", "a"]
        .map(|name| format!("[[entity]]\ntable = \"{name}\"\n"))
        .concat();
    let site = Site::bare("circle", NOWHERE, KEY, tables, &config).await;
    let daemon = Daemon::of(&site, "store");
    let (printed, code) = ask(&daemon, &["init"]);
    assert_eq!(code, Some(0), "{printed}");
    let order: Vec<&str> = printed.lines().take(3).map(|line| &line[..1]).collect();
    assert_eq!(order, ["a", "b", "c"]);
    says(
        &ask(&daemon, &["check"]).0,
        &["a comes before b, which it refers to", "circle"],
    );
    // Nothing can wait.
    site.run("delete from a; alter table a alter b_id set not null")
        .await;
    let (printed, code) = ask(&daemon, &["init"]);
    says(
        &printed,
        &[
            "entities refer to each other in a circle",
            "deferrable",
            "nullable",
        ],
    );
    assert_eq!(code, Some(2));
}

#[tokio::test]
async fn check_tells_every_fault_of_every_entity_at_once() {
    let tables = "create table a (id int primary key, n int, at time, password text);
         create table bare (n int);
         create table c (id int unique);
         create table fine (id int primary key)";
    let config = [
        patterns("[\"public.ba*\", \"nowhere.*\", \"public.fi?e\"]", ""),
        entity(
            "a",
            "a",
            &["id"],
            "exclude = [\"x\", \"y\"]\nredact = [\"n\"]\nretention = { column = \"at\", days = 3 }\n\
             include = [\"password\"]",
        ),
        entity("c", "c", &["id"], ""),
        entity("d", "gone", &["id"], ""),
        entity("bad name", "fine", &["id"], ""),
    ]
    .concat();
    let site = Site::bare("faults", NOWHERE, KEY, tables, &config).await;
    let daemon = Daemon::of(&site, "store");
    let faults = [
        "table public.bare: it has no primary key",
        "\"!public.bare\"",
        "no table matches nowhere.*",
        "bad name",
        "has no column x",
        "has no column y",
        "column n of table a is integer, which cannot be redacted",
        "measured by column at of table a",
        "key column id of table c may be null",
        "table gone of entity d",
    ];
    let (printed, code) = ask(&daemon, &["check"]);
    assert_eq!(code, Some(2));
    says(&printed, &faults);
    let (printed, code) = ask(&daemon, &["init"]);
    assert_eq!(code, Some(2));
    says(&printed, &faults[..4]);
    assert!(printed.contains("3 faults"), "{printed}");
}

#[tokio::test]
async fn check_names_the_private_columns_that_leave() {
    let tables = "create table a (id int primary key, password text, token text, embedding text)";
    let config = entity(
        "a",
        "a",
        &["id"],
        "exclude = [\"token\"]\ninclude = [\"embedding\"]",
    );
    let site = Site::bare("leaving", NOWHERE, KEY, tables, &config).await;
    let daemon = Daemon::of(&site, "store");
    assert_eq!(ask(&daemon, &["init"]).1, Some(0));
    let (printed, _) = ask(&daemon, &["check"]);
    says(
        &printed,
        &["advice private columns: they leave the site, and their names look private: a.password;"],
    );
}
