//! The JSON of rows: it is what PostgreSQL makes of them itself.

use std::collections::HashMap;

use cloud_sync::deliver::{Cloud as Destination, CloudOptions};
use secrecy::SecretString;
use serde_json::value::RawValue;

use crate::support::fault_proxy::FaultProxy;
use crate::support::process::Daemon;
use crate::support::says;
use crate::support::scenario::Scenario;
use crate::support::site::{Cloud, KEY, Site, connect, entity};
use crate::support::sql::texts;

const ENTITY: &str = "[[entity]]\nname = \"notes\"\ntable = \"note\"\nkey = [\"id\"]\n";

/// A line of a batch.
#[derive(serde::Deserialize)]
struct Line {
    op: String,
    key: Box<RawValue>,
    row: Option<Box<RawValue>>,
}

/// A site with one table, a cloud, and a door between them that notes what passes.
async fn notes(hint: &str, tables: &str) -> (Site, FaultProxy, Cloud) {
    let cloud = Cloud::start(hint).await;
    let fault_proxy = FaultProxy::before(&cloud.url).await;
    let site = Site::bare(hint, &fault_proxy.url(), KEY, tables, ENTITY).await;
    site.init().await;
    (site, fault_proxy, cloud)
}

/// The rows that the cloud is sent, by key, as they stand in the requests.
async fn sent(site: &Site, fault_proxy: &FaultProxy) -> HashMap<String, String> {
    let mut drain = site.drain();
    let options = CloudOptions {
        timeout: site.settings.cloud.timeout,
        in_flight: site.settings.delivery.in_flight,
        ..CloudOptions::new(site.settings.cloud.url.clone().unwrap(), SecretString::from(KEY))
    };
    drain.cloud = Destination::new(options, drain.catalogue.clone()).unwrap();
    drain.drain_all().await.unwrap();
    let mut rows = HashMap::new();
    for request in fault_proxy
        .requests()
        .iter()
        .filter(|request| request.path == "changes")
    {
        let lines = request.body.split(|&byte| byte == b'\n');
        for line in lines.filter(|line| !line.is_empty()) {
            let line: Line = serde_json::from_slice(line).unwrap();
            if line.op == "upsert" {
                rows.insert(line.key.get().to_owned(), line.row.unwrap().get().to_owned());
            }
        }
    }
    rows
}

const TYPES: &str = "create table note (id bigint primary key, \"a \"\"b\"\"\\\" boolean, c smallint, \
     d integer, e numeric, \
     f numeric(12,4), g text, h varchar(40), i char(7), j uuid, k json, l jsonb, m date, n timestamp, \
     o timestamptz, p time, q timestamptz(3), r bytea, s real, t float8)";

const ODD: &str = r#"
insert into note (id, g) values (1, E'\x01\x02\b\f\n\r\t\x0b\x1f \x7f "q" \\ / ü 👩‍👧 \u2028'), (19, ''), (20, '<>&''');
insert into note (id, e, m, n, o) values (2, 'NaN', 'infinity', 'infinity', '-infinity'), (3, 'Infinity', '-infinity', '-infinity', 'infinity'),
    (4, '-Infinity', '0044-03-15 BC', '4713-01-01 00:00:00 BC', '4713-01-01 00:00:00+00 BC'),
    (5, 0, '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00'),
    (6, 0.000, '0001-01-01', '0001-01-01 00:00:00.1', '0001-12-31 23:59:59.999+00 BC'), (7, -1e-30, '12345-06-07', null, null),
    (8, 1e30, null, null, null), (9, -10000, null, null, null), (10, 99999999.00000001, null, null, null),
    (21, 1e-16383, null, null, null), (22, (10::numeric ^ 5000) * 7 + 1, null, null, null);
insert into note (id, p, k, l) values (11, '24:00:00', '{"b" :  [1,2.50, null]}', '{"b" : [1,2.50, null], "a":"\u00fc"}'),
    (12, '00:00:00.000001', ' 7', '"x"'), (13, '23:59:59.5', 'null', 'null');
insert into note (id) values (14), (-9223372036854775808), (9223372036854775807);
insert into note (id, c, d, "a ""b""\") values (15, -32768, -2147483648, true), (16, 32767, 2147483647, false);
insert into note (id, h, i, j) values (17, 'ünïcödé', 'ab', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'), (23, '', '', null);
insert into note (id, g, r) values (18, repeat('long ', 30000), decode(repeat('00ff', 40000), 'hex')), (24, null, '');
insert into note (id, s, t) values (25, 'NaN', 'Infinity'), (26, '-Infinity', 'NaN'), (27, 1.1, 0.1::float8 + 0.2), (28, 1e-45, 1e308),
    (29, '-0', 1e15);
"#;

const RANDOM: &str = "
select setseed(0.42);
insert into note (id, c, d, e, f, g, m, n, o, p, q, r, s, t)
select n + 1000, (random() * 60000 - 30000)::int2, (random() * 4e9 - 2e9)::int4,
    ((random() - 0.5) * 10 ^ (random() * 40 - 20))::numeric * (10::numeric ^ (random() * 30 - 15)::int),
    round(((random() - 0.5) * 1e7)::numeric, 4),
    (select string_agg(chr(1 + (random() * 300)::int), '') from generate_series(1, n % 40)),
    date '2000-01-01' + (random() * 1000000 - 500000)::int,
    timestamp '2000-01-01' + (random() * 1e6 - 5e5) * interval '1 day', \
    timestamptz '2000-01-01' + (random() * 1e5 - 5e4) * interval '1 day',
    time '00:00' + random() * interval '1 day', clock_timestamp() + random() * interval '1 year',
    decode(md5(n::text) || repeat('7f', n % 5), 'hex'), (random() - 0.5) * 10 ^ (random() * 60 - 30), \
    (random() - 0.5) * 10 ^ (random() * 600 - 300)
from generate_series(1, 2000) n";

#[tokio::test]
async fn a_row_is_the_json_that_postgresql_makes_of_it() {
    let (site, fault_proxy, _cloud) = notes("values", TYPES).await;
    // Given rows of a writer with settings of its own
    let writer = connect(&site.database_url).await;
    let session = "set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kathmandu'; set extra_float_digits = 0; \
         set bytea_output = escape";
    for sql in [session, ODD, RANDOM] {
        writer.batch_execute(sql).await.unwrap();
    }
    // when they are sent
    let sent = sent(&site, &fault_proxy).await;
    // then each is what row_to_json makes of it in UTC, with binary strings in base64.
    site.run("set timezone = 'UTC'").await;
    let rows = site
        .client
        .query(
            "select format('{\"id\":%s}', id), row_to_json(whole)::text \
             from (select id, \"a \"\"b\"\"\\\", c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, \
                          translate(encode(r, 'base64'), E'\\n', '') as r, s, t from note) whole",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(sent.len(), rows.len());
    for row in &rows {
        let (key, made): (&str, &str) = (row.get(0), row.get(1));
        assert_eq!(sent.get(key).map(String::as_str), Some(made), "{key}");
    }
}

#[tokio::test]
async fn other_types_go_as_text_and_arrays_of_built_in_types_as_json() {
    let tables = "create type mood as enum ('fine', 'so \"so\"'); create type pair as (a int, b text); \
         create domain whole as int; \
         create table note (id bigint primary key, a mood, b inet, c interval, d int4range, e pair, \
         f money, g whole, h int[], \
         i text[], j timestamptz[], k mood[], l point, m oid, n macaddr, o xml, p bit(3), q bytea[], \
         r jsonb[], s pair[], t float8[])";
    let (site, fault_proxy, cloud) = notes("othertypes", tables).await;
    let writer = connect(&site.database_url).await;
    let session = "set intervalstyle = 'iso_8601'; set timezone = 'Asia/Kathmandu'";
    writer.batch_execute(session).await.unwrap();
    writer
        .batch_execute(
            "insert into note values (1, 'so \"so\"', '10.0.0.1/8', '1 day 2 hours', '[1,5)', (1, \
             'x \"y\"'), 12.5, 7, '{{1,null},{3,4}}', \
             '{a,NULL,\"b\\\"c\"}', array[timestamptz '2026-01-02 03:04:05+00'], '{fine}', '(1,2)', \
             4000000000, '08:00:2b:01:02:03', \
             '<a/>', b'101', array['\\x00ff'::bytea], array['{\"a\": 1}'::jsonb], array[(1, 'z')::pair], \
             '{NaN,1.5}'); insert into note values (2)",
        )
        .await
        .unwrap();
    let sent = sent(&site, &fault_proxy).await;
    let row: serde_json::Value = serde_json::from_str(&sent["{\"id\":1}"]).unwrap();
    let expected = serde_json::json!({
        "id": 1, "a": "so \"so\"", "b": "10.0.0.1/8", "c": "1 day \
         02:00:00", "d": "[1,5)", "e": "(1,\"x \"\"y\"\"\")", "f": "$12.50", "g": 7,
        "h": [[1, null], [3, 4]], "i": ["a", null, "b\"c"], "j": ["2026-01-02T03:04:05+00:00"], "k": "{fine}", "l": "(1,2)",
        "m": 4_000_000_000_u64, "n": "08:00:2b:01:02:03", "o": "<a/>", "p": "101", "q": "{\"\\\\x00ff\"}", "r": [{"a": 1}],
        "s": "{\"(1,z)\"}", "t": ["NaN", 1.5],
    });
    let named = row.as_object().unwrap();
    assert_eq!(named.len(), expected.as_object().unwrap().len());
    for (name, value) in named {
        assert_eq!(value, &expected[name], "{name}");
    }
    let empty: serde_json::Value = serde_json::from_str(&sent["{\"id\":2}"]).unwrap();
    let mut others = empty
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "id");
    assert!(others.all(|(_, value)| value.is_null()), "{empty}");
    let held = "select count(*) from cloud.notes where id = 2 or a = 'so \"so\"' and s = '{\"(1,z)\"}'";
    let held: i64 = connect(&cloud.database_url)
        .await
        .query_one(held, &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(held, 2);
}

/// Columns of types that have another JSON, and their names as `[[entity]]` lists them.
const VALUES: &str = "
    create table v (id bigint primary key, n numeric, b boolean, a text[], j jsonb, at timestamptz, t text, nothing int)";

fn as_text(columns: &[&str]) -> String {
    let forms: Vec<String> = columns
        .iter()
        .map(|column| format!("{column} = {{ as = \"text\" }}"))
        .collect();
    format!("columns = {{ {} }}", forms.join(", "))
}

#[tokio::test]
async fn columns_that_the_cloud_wants_as_text_are_text_in_the_stream_in_backfill_and_in_sync() {
    let config = entity(
        "values",
        "v",
        &["id"],
        &as_text(&["n", "b", "a", "j", "at", "t", "nothing"]),
    );
    let cloud = Cloud::start("as_text").await;
    let site = Site::bare("as_text", &cloud.url, KEY, VALUES, &config).await;
    let row = "1.50, true, '{x,null}', '{\"k\": [1, \"y\"]}', '2026-11-30 08:00:00+08', 'it''s', null)";
    site.run(&format!("insert into v values (1, {row}")).await;
    let scenario = Scenario::of(cloud, site).await;
    scenario.sync().await;
    scenario
        .run(&format!(
            "insert into v values (2, {row}; insert into v values (3, 'NaN')"
        ))
        .await;
    scenario.running.caught_up().await;
    let types = "select string_agg(data_type, ',' order by ordinal_position) from information_schema.columns \
                 where table_schema = 'cloud' and table_name = 'values' and column_name !~ '^_'";
    let held = &scenario.cloud_client;
    assert_eq!(
        texts(held, types).await,
        ["bigint,text,text,text,text,text,text,text"]
    );
    let all = "select concat_ws('|', n, b, a, j, at, t, nothing) from cloud.values order by id";
    let sent = "1.50|true|[\"x\",null]|{\"k\": [1, \"y\"]}|2026-11-30T00:00:00+00:00|it's";
    assert_eq!(texts(held, all).await, [sent, sent, "NaN"]);
    scenario.site.assert_equal(&scenario.cloud).await;
    scenario.assert_nothing_to_sync().await;
    // What the cloud lost comes again as it was.
    held.batch_execute("delete from cloud.values where id = 2")
        .await
        .unwrap();
    scenario.sync().await;
    scenario.running.caught_up().await;
    assert_eq!(texts(held, all).await, [sent, sent, "NaN"]);
    scenario.run("update v set n = 2 where id = 1").await;
    scenario.running.caught_up().await;
    scenario.site.assert_equal(&scenario.cloud).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_as_text_is_refused_where_both_sides_find_rows_by_it() {
    let cloud = Cloud::start("text_key").await;
    let config = entity("values", "v", &["id"], &as_text(&["id"]));
    let site = Site::bare("text_key", &cloud.url, KEY, VALUES, &config).await;
    site.init().await;
    let output = Daemon::of(&site, "store").ask(&["check"]);
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success(), "{printed}");
    says(
        &printed,
        &[
            "entity values has its key column id as text",
            "take the key column out",
            "cloud.capabilities",
        ],
    );
}
