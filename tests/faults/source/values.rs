//! Odd values and odd names arrive exactly as they are.

use std::fmt::Write;

use tokio_postgres::Client;

use crate::support::oracle::{self, Tally};
use crate::support::process::Daemon;
use crate::support::site::{Cloud, KEY, LIMIT, Site, connect};

/// What the types below need.
const TYPES: &str = r#"
create type mood as enum ('so so', 'O''K', 'größer "2"');
create domain percent as double precision check (value <= 100);
create domain pair as int[];
create type spot as (x double precision, note text, raw bytea, at timestamptz);
create type floats as range (subtype = double precision);
"#;

/// Types with values of theirs, as SQL expressions.
const VALUES: &[(&str, &[&str])] = &[
    (
        "text",
        &[
            "''",
            "'null'",
            "'NULL'",
            "E'\\t\\n\\r\\\\ \"quoted\" ''single'' \\x01 \\x1f \\x7f'",
            "'👩‍👩‍👧‍👦 e\u{301} \u{2028} \u{2029} \u{feff} \u{10ffff} \u{e000}'",
            "'\\u0041 {} [] \\'",
            "repeat('långt ', 20000)",
            "'  spaces  '",
        ],
    ),
    ("varchar(10)", &["''", "'ünïcödé'"]),
    ("char(5)", &["'ab'", "''"]),
    ("\"char\"", &["'a'", "''"]),
    ("name", &["'pg_class'"]),
    ("boolean", &["true", "false"]),
    ("smallint", &["-32768", "32767"]),
    ("integer", &["-2147483648", "2147483647"]),
    (
        "bigint",
        &["-9223372036854775808", "9223372036854775807", "9007199254740993"],
    ),
    (
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0.00",
            "-0.0",
            "1.10",
            "repeat('9', 1000)::numeric",
            "('0.' || repeat('123456789', 111))::numeric",
            "1e-100",
        ],
    ),
    ("numeric(20,4)", &["12345678901234.5600", "'NaN'"]),
    (
        "real",
        &["'NaN'", "'Infinity'", "'-0'", "1e-45", "3.4028235e38", "0.1"],
    ),
    (
        "double precision",
        &[
            "'NaN'",
            "'-Infinity'",
            "'-0'",
            "5e-324",
            "1.7976931348623157e308",
            "0.1::float8 + 0.2",
            "1e22",
            "123456789012345680",
        ],
    ),
    ("percent", &["0.1::float8 + 0.2", "'-0'"]),
    (
        "date",
        &[
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 BC'",
            "'4713-01-01 BC'",
            "'5874897-12-31'",
            "'12345-06-07'",
            "'2000-02-29'",
        ],
    ),
    (
        "timestamp",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'1999-12-31 23:59:59.000001'",
        ],
    ),
    (
        "timestamptz",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'1899-12-31 23:59:59.5+00'",
            "'2024-03-31 01:30:00+05:45'",
        ],
    ),
    ("time", &["'24:00:00'", "'00:00:00.000001'"]),
    (
        "timetz",
        &["'24:00:00+00'", "'12:34:56.7-15:59'", "'12:00+05:30:15'"],
    ),
    (
        "interval",
        &[
            "'-1 year 2 mons -3 days 04:05:06.000007'",
            "'0'",
            "'178000000 years'",
            "'1 day -00:00:01'",
        ],
    ),
    (
        "bytea",
        &[
            "''",
            "'\\x00ff5c22'",
            "'\\x'::bytea || decode(repeat('00', 100), 'hex')",
        ],
    ),
    ("bytea[]", &["array['\\x00ff'::bytea, null, '']", "'{}'"]),
    (
        "int[]",
        &[
            "'{}'",
            "'{1,null,3}'",
            "'{{1,2},{3,4}}'",
            "'{{{1}},{{2}}}'",
            "'[0:2]={1,2,3}'",
            "'[-1:0][2:3]={{1,2},{3,4}}'",
        ],
    ),
    (
        "text[]",
        &[
            "array['', null, 'null', 'NULL', 'a,b', '{}', E'\"\\\\']",
            "array[array['x','y'],array['z','é']]",
            "'[5:5]={x}'",
        ],
    ),
    ("float8[]", &["array['NaN','5e-324',0.1]::float8[]"]),
    (
        "timestamptz[]",
        &["array['infinity','2024-01-01 00:00:00+00']::timestamptz[]"],
    ),
    ("numeric[]", &["array['NaN',1.10]::numeric[]"]),
    ("jsonb[]", &["array['{\"a\": 1}','null','\"x\"']::jsonb[]"]),
    ("pair", &["'{1,2}'", "'[2:3]={1,2}'"]),
    ("mood", &["'so so'", "'O''K'", "'größer \"2\"'"]),
    ("mood[]", &["array['so so','größer \"2\"']::mood[]"]),
    (
        "spot",
        &[
            "(0.1::float8 + 0.2, E'a\"\\\\b', '\\x00ff', '2024-01-01 00:00:00+00')",
            "(null, '', null, 'infinity')",
            "(5e-324, null, '', null)",
        ],
    ),
    ("spot[]", &["array[(0.1, 'x', '\\x01', null)]::spot[]"]),
    (
        "json",
        &[
            "'\"x\"'",
            "'1.0'",
            "'{\"b\": 1, \"a\" :2, \"a\":3}'",
            "'{\"big\": 123456789012345678901234567890.10, \"e\": 1E400}'",
            "'{\"nul\": \"\\u0000\"}'",
            "'{\"half\": \"\\ud800\", \"esc\": \"\\u00e9 \\\\u0000 \\/\"}'",
            "'\"\\u0000\"'",
            "'[]'",
        ],
    ),
    (
        "jsonb",
        &[
            "'null'",
            "'\"\"'",
            "'1.00'",
            "'{\"big\": 123456789012345678901234567890.10, \"e\": 1e100}'",
            "'{\"\": [null, {}]}'",
            "'\"\u{2028}\"'",
        ],
    ),
    ("uuid", &["'00000000-0000-0000-0000-000000000000'"]),
    ("inet", &["'::1'", "'10.0.0.1/8'", "'fe80::1/64'"]),
    ("cidr", &["'10.0.0.0/8'", "'::/0'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(5)", &["B'10101'"]),
    ("bit", &["B'1'"]),
    ("varbit", &["B''", "B'1'", "B'101010101010'"]),
    ("money", &["'-92233720368547758.08'", "1234567.89"]),
    ("oid", &["4294967295"]),
    ("xid8", &["'18446744073709551615'"]),
    ("pg_lsn", &["'FFFFFFFF/FFFFFFFF'"]),
    ("tsvector", &["'a:1A fat:2B,4C ''it''''s'':7'", "''"]),
    ("tsquery", &["'fat & (rat | !cat)'"]),
    ("xml", &["'<a b=\"1\">&lt;ü&gt;</a>'"]),
    ("point", &["'(0.1,-0)'", "'(Infinity,NaN)'"]),
    ("box", &["'((1,2),(3,4))'"]),
    ("path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    ("polygon", &["'((0,0),(1,1),(2,0))'"]),
    ("circle", &["'<(0,0),0.1>'"]),
    ("int4range", &["'empty'", "'[1,)'", "'(,)'"]),
    ("tstzrange", &["'[2024-01-01 00:00:00+00,infinity)'"]),
    (
        "tsrange",
        &["'(\"0044-03-15 00:00:00 BC\",\"2000-01-01 00:00:00\"]'"],
    ),
    ("daterange", &["'[2024-01-01,)'"]),
    ("floats", &["'[0.30000000000000004,1e300)'"]),
    ("int4multirange", &["'{[1,2),[5,7)}'"]),
    ("regclass", &["'pg_class'"]),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    ("tid", &["'(1,2)'"]),
];

/// Each row's value of one table, as text, by id.
async fn texts(client: &Client, table: &str, of: &str) -> Vec<(i32, Option<String>)> {
    let expression = match of {
        "bytea" => "encode(v, 'hex')",
        // The cloud has no such type: it holds the text.
        "json" | "spot" | "spot[]" | "mood[]" | "bytea[]" => "v::text",
        _ => "to_json(v) #>> '{}'",
    };
    client
        .query(&format!("select id, {expression} from {table} order by id"), &[])
        .await
        .unwrap_or_else(|error| panic!("{table} of {of}: {error:?}"))
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

const RENDERING: &str = "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; \
     set bytea_output = 'hex'; set extra_float_digits = 1";

/// What a writer's session may be set to.
const WRITER: &str = "set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kathmandu'; \
     set intervalstyle = 'sql_standard'; \
     set bytea_output = 'escape'; set extra_float_digits = -15; set xmlbinary = hex; \
     set quote_all_identifiers = on";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_values_arrive_exactly_whatever_the_writers_session_is_set_to() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("values").await;
    let (mut tables, mut entities, mut rows) = (TYPES.to_owned(), String::new(), String::new());
    // Each type twice: alone, and next to bytes.
    for (nth, (of, values)) in VALUES.iter().enumerate() {
        for (form, further_column) in [("plain", ""), ("bytes", ", b bytea default '\\x00'")] {
            let name = format!("{form}_{nth}");
            writeln!(
                tables,
                "create table {name} (id int primary key, v {of}{further_column});"
            )
            .unwrap();
            writeln!(
                entities,
                "[[entity]]\nname = \"{name}\"\ntable = \"{name}\"\nkey = [\"id\"]"
            )
            .unwrap();
            for (id, value) in values.iter().enumerate() {
                writeln!(rows, "insert into {name} (id, v) values ({id}, {value});").unwrap();
            }
            writeln!(rows, "insert into {name} (id) values (-1);").unwrap();
        }
    }
    let site = Site::bare("values", &cloud.url, KEY, &tables, &entities).await;
    site.init().await;
    let writer = connect(&site.database_url).await;
    writer.batch_execute(WRITER).await.unwrap();
    for row in rows.lines() {
        writer
            .batch_execute(row)
            .await
            .unwrap_or_else(|error| panic!("{row}: {error:?}"));
        tally.faults += 1;
    }
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    daemon.caught_up().await;
    let there = connect(&cloud.database_url).await;
    site.run(RENDERING).await;
    there.batch_execute(RENDERING).await.unwrap();
    let mut wrong = Vec::new();
    for (nth, (of, _)) in VALUES.iter().enumerate() {
        for form in ["plain", "bytes"] {
            let name = format!("{form}_{nth}");
            let ours = texts(&site.client, &name, of).await;
            let theirs = texts(&there, &format!("cloud.{name}"), of).await;
            for (id, value) in &ours {
                let found = theirs.iter().find(|(there, _)| there == id);
                if found.is_none_or(|(_, found)| found != value) {
                    let short = |text: &Option<String>| {
                        text.as_ref()
                            .map(|text| text.chars().take(120).collect::<String>())
                    };
                    wrong.push(format!(
                        "{of} ({form}) {id}: {:?} became {:?}",
                        short(value),
                        found.map(|found| short(&found.1))
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), daemon.log());
    // The oracle compares by jsonb, which does not know some of these values: it is asked for all but the
    // rows.
    let found = oracle::amid(&site, &cloud).await;
    tally.violations += found.len() as u64;
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names_and_keys_are_replicated_changed_and_deleted() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("names").await;
    let long = "ü".repeat(31);
    let tables = format!(
        r#"
create schema "Größe 1.0%";
create table "Größe 1.0%"."Räume ""A"".b" ("Key %s" timestamptz, "sel ect" text collate "C", "{long}" numeric, "n" text, "new_rows" int, r int default 1, t text default 't', k text default 'k', c json default '[]', q int, "position" int default 7,
    "d.o.t" int generated always as (1 + 1) stored, primary key ("Key %s", "sel ect"));
create table floats (k double precision primary key, v text);
create table numerics (k numeric primary key, v text);
create table texts (k text primary key, v text);

"#
    );
    let entities = r#"
[[entity]]
name = "odd_rooms"
table = '"Größe 1.0%"."Räume ""A"".b"'
key = ["Key %s", "sel ect"]
[[entity]]
name = "floats"
table = "floats"
key = ["k"]
[[entity]]
name = "numerics"
table = "numerics"
key = ["k"]
[[entity]]
name = "texts"
table = "texts"
key = ["k"]
"#;
    let site = Site::bare("names", &cloud.url, KEY, &tables, entities).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    let table = r#""Größe 1.0%"."Räume ""A"".b""#;
    // Two writers who write one moment, and one number, in two ways.
    let writer = connect(&site.database_url).await;
    writer.batch_execute(WRITER).await.unwrap();
    writer
        .batch_execute(&format!(
            "insert into {table} values ('2024-01-01 00:00:00+00', 'a/b?c=%41&d', 1.50, 'n', 1), \
             ('infinity', '👩‍👩‍👧‍👦', null, null, null); \
             insert into floats values (0.1::float8 + 0.2, 'x'), ('NaN', 'y'), ('Infinity', 'z'), (5e-324, \
             'w'); insert into numerics values (1.10, 'x'), ('NaN', 'y'), (repeat('9', 300)::numeric, 'z'); \
             insert into texts select repeat(chr(65 + n), 2000), 'long' from generate_series(1, 3) n; \
             insert into texts values (E'\\x01\\n\\t\\\\\"', 'control'), ('', 'empty'), ('null', 'null'), \
             (U&'\\00e9', 'one'), (U&'e\\0301', 'two')"
        ))
        .await
        .unwrap();
    daemon.caught_up().await;
    tally.faults += 1;
    site.run("set timezone = 'America/St_Johns'").await;
    site.run(&format!(
        "update {table} set n = 'again' where new_rows = 1; delete from {table} where n is null; \
         update floats set v = 'again' where v in ('x', 'y'); delete from floats where v in ('z', 'w'); \
         update numerics set k = 1.1, v = 'again' where v = 'x'; delete from numerics where v in ('y', 'z'); \
         update texts set v = 'again' where v in ('long', 'control', 'one'); \
         delete from texts where v in ('empty', 'null', 'two')"
    ))
    .await;
    daemon.caught_up().await;
    // The cloud's list of them is read, and says the same.
    let output = daemon.ask(&["sync", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pushed = report["summary"].as_object().unwrap();
    assert!(pushed.values().all(|count| count == 0), "{text}");
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_thirty_megabytes_passes_and_one_that_is_too_large_stands_aside() {
    let mut tally = Tally::default();
    let cloud = Cloud::start("large").await;
    let tables = "create table big (id int primary key, v text, b bytea)";
    let entities = "[[entity]]\nname = \"bigs\"\ntable = \"big\"\nkey = [\"id\"]\n";
    let site = Site::bare("large", &cloud.url, KEY, tables, entities).await;
    site.init().await;
    let daemon = Daemon::of(&site, "store");
    let process = daemon.start();
    site.run(
        "insert into big select 1, repeat('0123456789', 3 * 1024 * 1024); \
         insert into big values (2, 'small'); \
         insert into big select 3, null, decode(repeat('00ff', 5 * 1024 * 1024), 'hex'); \
         insert into big select 4, repeat('0123456789', 10 * 1024 * 1024); \
         insert into big values (5, 'small')",
    )
    .await;
    tally.faults += 2;
    // It takes a busy machine longer than other changes do.
    let status = daemon
        .until("caught up", 4 * LIMIT, |status| {
            status.lag.is_some_and(|lag| lag.changes == 0)
        })
        .await;
    println!(
        "quarantine {:?}: {}",
        status.quarantine,
        daemon.log().lines().last().unwrap_or_default()
    );
    if status.quarantine != Some(0) {
        let listed = daemon.ask(&["quarantine", "list"]);
        println!("{}", String::from_utf8_lossy(&listed.stdout));
        assert_eq!(status.quarantine, Some(1));
        site.run("update big set v = 'shorter' where id = 4").await;
        daemon.caught_up().await;
    }
    tally.judge(&site, &cloud).await;
    assert!(process.terminate().await.success(), "{}", daemon.log());
}
