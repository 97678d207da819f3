//! Rows that capture writes as PostgreSQL sends them: what they read as, and when it does so.

use cloud_sync::change::{Change, Position, Snapshot};
use cloud_sync::checkpoint::Window;
use cloud_sync::source::connect::Session;
use cloud_sync::source::outbox::{Bounds, Outbox};

use crate::support::site::{Cloud, KEY, Site, connect};

const NOWHERE: &str = "http://127.0.0.1:9/api";

const ENTITY: &str = "[[entity]]\nname = \"notes\"\ntable = \"note\"\nkey = [\"id\"]\n";

async fn number(site: &Site, sql: &str) -> i64 {
    site.client.query_one(sql, &[]).await.unwrap().get(0)
}

/// All that waits in the outbox, read in portions of these bounds; whether it is said to be small, where not told otherwise.
async fn read(site: &Site, rows: usize, bytes: usize, small: Option<bool>) -> Vec<Change> {
    let session = Session::open(site.settings.require_database_url().unwrap(), "test")
        .await
        .unwrap();
    let entity = number(site, "select id::bigint from cloud_sync.entity").await as i16;
    let key = ["id".to_owned()];
    let mut outbox = Outbox::prepare(&session, &[entity], &[&key]).await.unwrap();
    let look = outbox.look(&session, Position(i64::MAX)).await.unwrap();
    let mut window = Window {
        hi: look.snapshot,
        position: Position(0),
        next_floor: look.last,
    };
    let small = small.unwrap_or(look.small);
    let bounds = Bounds { rows, bytes, small };
    let mut all = Vec::new();
    for turns in 0.. {
        let portion = outbox
            .read(&session, &Snapshot::beginning(), &window, bounds)
            .await
            .unwrap();
        assert!(portion.changes.len() <= rows);
        let held: usize = portion.changes.iter().map(Change::bytes).sum();
        let last = portion.changes.last().map_or(0, Change::bytes);
        // Where the database reckons, it does not know the columns' names.
        assert!(held - last <= bytes * 2, "{held}");
        window.position = portion.last.unwrap_or(window.position);
        all.extend(portion.changes);
        if portion.exhausted {
            // Bounds that hold everything are not filled row by row.
            assert!(rows < 1000 || bytes < 1 << 20 || turns == 0);
            return all;
        }
    }
    unreachable!()
}

async fn changes(site: &Site) -> Vec<Change> {
    read(site, 100_000, 1 << 30, None).await
}

/// How many changes are packed, and how many are not.
async fn forms(site: &Site) -> (i64, i64) {
    let packed = number(
        site,
        "select count(*) from cloud_sync.outbox where packed is not null",
    )
    .await;
    let all = number(site, "select count(*) from cloud_sync.outbox").await;
    (packed, all - packed)
}

const TYPES: &str = "create table note (id bigint primary key, \"a \"\"b\"\"\\\" boolean, c smallint, d integer, e numeric, \
     f numeric(12,4), g text, h varchar(40), i char(7), j uuid, k json, l jsonb, m date, n timestamp, o timestamptz, p time, \
     q timestamptz(3))";

const ODD: &str = r#"
insert into note (id, g) values (1, E'\x01\x02\b\f\n\r\t\x0b\x1f \x7f "q" \\ / ü 👩‍👧 \u2028');
insert into note (id, e, m, n, o) values (2, 'NaN', 'infinity', 'infinity', '-infinity'), (3, 'Infinity', '-infinity', '-infinity', 'infinity'),
    (4, '-Infinity', '0044-03-15 BC', '4713-01-01 00:00:00 BC', '4713-01-01 00:00:00+00 BC'),
    (5, 0, '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00'),
    (6, 0.000, '0001-01-01', '0001-01-01 00:00:00.1', '0001-12-31 23:59:59.999+00 BC'), (7, -1e-30, '12345-06-07', null, null),
    (8, 1e30, null, null, null), (9, -10000, null, null, null), (10, 99999999.00000001, null, null, null);
insert into note (id, p, k, l) values (11, '24:00:00', '{"b" :  [1,2.50, null]}', '{"b" : [1,2.50, null], "a":"\u00fc"}'),
    (12, '00:00:00.000001', ' 7 ', '"x"'), (13, '23:59:59.5', 'null', 'null');
insert into note (id) values (14), (-9223372036854775808);
insert into note (id, c, d, "a ""b""\") values (15, -32768, -2147483648, true), (16, 32767, 2147483647, false);
insert into note (id, h, i, j) values (17, 'ünïcödé', 'ab', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11');
insert into note (id, g) values (18, repeat('long ', 30000));
"#;

const RANDOM: &str = "
select setseed(0.42);
insert into note (id, c, d, e, f, g, m, n, o, p, q)
select n + 1000, (random() * 60000 - 30000)::int2, (random() * 4e9 - 2e9)::int4,
    ((random() - 0.5) * 10 ^ (random() * 40 - 20))::numeric * (10::numeric ^ (random() * 30 - 15)::int),
    round(((random() - 0.5) * 1e7)::numeric, 4),
    (select string_agg(chr(1 + (random() * 300)::int), '') from generate_series(1, n % 40)),
    date '2000-01-01' + (random() * 1000000 - 500000)::int,
    timestamp '2000-01-01' + (random() * 1e6 - 5e5) * interval '1 day', timestamptz '2000-01-01' + (random() * 1e5 - 5e4) * interval '1 day',
    time '00:00' + random() * interval '1 day', clock_timestamp() + random() * interval '1 year'
from generate_series(1, 2000) n";

#[tokio::test]
async fn a_packed_row_is_the_json_that_the_database_makes_of_it() {
    let site = Site::bare("packed", NOWHERE, KEY, TYPES, ENTITY).await;
    site.init().await;
    let writer = connect(&site.database_url).await;
    let session =
        "set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kathmandu'; set standard_conforming_strings = on";
    writer.batch_execute(session).await.unwrap();
    writer.batch_execute(ODD).await.unwrap();
    writer.batch_execute(RANDOM).await.unwrap();
    assert_eq!(forms(&site).await, (19 + 2000, 0));
    let read = changes(&site).await;
    site.run("set timezone = 'UTC'").await;
    let rows = site
        .client
        .query(
            "select id, row_to_json(whole)::text, json_build_object('id', id)::text from note whole",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(read.len(), rows.len());
    let of: std::collections::HashMap<&str, &str> = rows.iter().map(|row| (row.get(2), row.get(1))).collect();
    for change in &read {
        assert_eq!(change.row.as_deref(), Some(of[&*change.key]));
    }
}

#[tokio::test]
async fn rows_are_packed_only_while_their_columns_are_the_ones_that_are_known() {
    let cloud = Cloud::start("layouts").await;
    let table = "create table note (id bigint primary key, a text, b text)";
    let site = Site::bare("layouts", &cloud.url, KEY, table, ENTITY).await;
    site.init().await;
    // Given writers whose sessions have their plans, one of them in a transaction that sees the catalog as it was,
    let writer = connect(&site.database_url).await;
    let old = connect(&site.database_url).await;
    let mut id = 0;
    let mut insert = |columns: &str| {
        id += 1;
        format!("insert into note (id, {columns}) values ({id}, 'ä', 'b')")
    };
    for client in [&writer, &old] {
        client.batch_execute(&insert("a, b")).await.unwrap();
    }
    assert_eq!(forms(&site).await, (2, 0));
    // and one to whom texts would be sent in another encoding, which not every text has,
    let latin = connect(&site.database_url).await;
    latin
        .batch_execute("set client_encoding = 'LATIN1'")
        .await
        .unwrap();
    latin
        .batch_execute(&insert("a, b").replace('ä', "'||chr(8364)||'"))
        .await
        .unwrap();
    assert_eq!(forms(&site).await, (2, 1));
    old.batch_execute("begin isolation level repeatable read; select count(*) from cloud_sync.outbox")
        .await
        .unwrap();
    // when one column gives way to another of its type,
    writer
        .batch_execute("alter table note drop column a; alter table note add column c text")
        .await
        .unwrap();
    // then neither takes the new column for the old one,
    writer.batch_execute(&insert("b, c")).await.unwrap();
    old.batch_execute(&insert("b, c")).await.unwrap();
    old.batch_execute("commit").await.unwrap();
    writer.batch_execute("update note set c = 'again'").await.unwrap();
    assert_eq!(forms(&site).await, (2, 8));
    // nor where a column has another name or type.
    for (alter, columns) in [
        ("alter table note rename c to d", "b, d"),
        (
            "alter table note rename d to c; alter table note alter b type varchar(20)",
            "b, c",
        ),
    ] {
        writer.batch_execute(alter).await.unwrap();
        writer.batch_execute(&insert(columns)).await.unwrap();
    }
    // (The cloud is never told of column d: what was captured meanwhile is superseded.)
    writer
        .batch_execute("update note set b = 'c' where b = 'ä'")
        .await
        .unwrap();
    let (packed, others) = forms(&site).await;
    assert_eq!(packed, 2);
    // Once the functions are made anew, rows are packed again, a renamed table's too, in each slot,
    site.init().await;
    writer.batch_execute(&insert("b, c")).await.unwrap();
    writer
        .batch_execute("alter table note rename to renamed")
        .await
        .unwrap();
    for state in 0..8 {
        site.run(&format!("select setval('cloud_sync.slot', {state})"))
            .await;
        writer
            .batch_execute(&insert("b, c").replace("into note", "into renamed"))
            .await
            .unwrap();
    }
    writer
        .batch_execute("alter table renamed rename to note")
        .await
        .unwrap();
    assert_eq!(forms(&site).await, (2 + 9, others));
    let slots =
        "select count(*) from generate_series(0, 3) s where pg_relation_size('cloud_sync.outbox_' || s) > 0";
    assert_eq!(number(&site, slots).await, 4);
    // and all arrives as it is.
    site.drain().drain_all().await.unwrap();
    site.assert_equal(&cloud).await;
}

#[tokio::test]
async fn a_window_reads_the_same_in_portions_of_any_bounds() {
    let table = "create table note (id bigint primary key, text text)";
    let site = Site::bare("portions", NOWHERE, KEY, table, ENTITY).await;
    site.init().await;
    site.run("insert into note select n, repeat('x', n % 700) from generate_series(1, 200) n; delete from note where id % 10 = 0")
        .await;
    let whole = changes(&site).await;
    assert_eq!(whole.len(), 220);
    for small in [true, false] {
        for (rows, bytes) in [
            (1, 1 << 20),
            (7, 1 << 20),
            (220, 1 << 20),
            (1000, 1 << 20),
            (1000, 1),
            (1000, 3000),
            (50, 20_000),
        ] {
            let read = read(&site, rows, bytes, Some(small)).await;
            assert!(read == whole, "{rows} rows, {bytes} bytes, small: {small}");
        }
    }
    // A row that is kept out of line is not taken for a small one.
    let session = Session::open(site.settings.require_database_url().unwrap(), "test")
        .await
        .unwrap();
    let outbox = Outbox::prepare(&session, &[], &[]).await.unwrap();
    assert!(outbox.look(&session, Position(0)).await.unwrap().small);
    site.run("insert into note select 1000, string_agg(md5(n::text), '') from generate_series(1, 3000) n")
        .await;
    assert!(!outbox.look(&session, Position(0)).await.unwrap().small);
}
