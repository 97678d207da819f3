//! What a writer of every kind does to the tables of `tables.sql`: parts of transactions, and how they are
//! put together.

use rand::RngExt;
use rand::rngs::StdRng;

use super::rows;

/// Statements that belong together, and their kind.
pub(super) struct WorkUnit {
    /// The kind, for the counts.
    pub(super) kind: &'static str,
    pub(super) sql: String,
}

impl WorkUnit {
    fn new(kind: &'static str, sql: impl Into<String>) -> Self {
        Self {
            kind,
            sql: sql.into(),
        }
    }
}

/// One transaction of any kind. Some fail, as transactions do.
pub(super) fn transaction(rng: &mut StdRng, merge: bool) -> WorkUnit {
    match rng.random_range(0..100) {
        0..20 => WorkUnit::new("pots and leaves", rows::transaction(rng)),
        20..70 => part(rng, merge),
        _ => several(rng, merge),
    }
}

/// A transaction of two parts, with a savepoint between them; constraints are deferred at its beginning or
/// checked amid it.
fn several(rng: &mut StdRng, merge: bool) -> WorkUnit {
    let (first, second, third) = (part(rng, merge), part(rng, merge), part(rng, merge));
    let constraints = ["deferred", "immediate", "deferred"][rng.random_range(0..3)];
    let (kind, savepoint) = if rng.random_bool(0.5) {
        ("rollback to a savepoint", "rollback to savepoint s")
    } else {
        ("savepoint", "release savepoint s")
    };
    let (kind, end) = if rng.random_bool(0.85) {
        (kind, "commit")
    } else {
        ("rollback", "rollback")
    };
    let sql = format!(
        "begin; set constraints all {constraints}; {}; savepoint s; {}; {savepoint}; {}; {end}",
        first.sql, second.sql, third.sql
    );
    WorkUnit::new(kind, sql)
}

/// A part of a transaction on the tables of every kind: no part begins or ends one.
pub(super) fn part(rng: &mut StdRng, merge: bool) -> WorkUnit {
    match rng.random_range(0..100) {
        0..22 => triggers(rng, merge),
        22..42 => deferrable(rng),
        42..60 => cascades(rng),
        60..78 => plain(rng, merge),
        78..94 => partitions(rng),
        _ => draft(rng),
    }
}

/// Rows whose writes fire triggers of the site's own.
fn triggers(rng: &mut StdRng, merge: bool) -> WorkUnit {
    let (id, other) = (rng.random_range(1..120), rng.random_range(1..120));
    let word: u32 = rng.random();
    let last = id + rng.random_range(0..4);
    match rng.random_range(0..100) {
        0..30 => WorkUnit::new(
            "triggers, insert",
            format!(
                "insert into item (id, title) select n, case when n % 11 = 5 then 'skip' \
                 else 'title {word} ' || n end \
                 from generate_series({id}, {last}) n on conflict (id) do update set title = excluded.title"
            ),
        ),
        30..55 => WorkUnit::new(
            "triggers, update",
            format!("update item set title = 'new {word}', settled = 0 where id between {id} and {last}"),
        ),
        55..70 => WorkUnit::new(
            "triggers, delete",
            format!("delete from item where id between {id} and {last}"),
        ),
        70..82 => WorkUnit::new(
            "triggers, key",
            format!("update item set id = {other} where id = {id}"),
        ),
        82..94 if merge => WorkUnit::new(
            "triggers, merge",
            format!(
                "merge into item t using (select n as id, 'merged {word}' as title \
                 from generate_series({id}, {last}) n) s \
                 on t.id = s.id when matched and t.id % 3 = 0 then delete \
                 when matched then update set title = s.title \
                 when not matched then insert (id, title) values (s.id, s.title)"
            ),
        ),
        82..94 => WorkUnit::new("triggers, delete", format!("delete from item where id = {id}")),
        94..97 => WorkUnit::new("triggers, truncate", "truncate item"),
        _ => WorkUnit::new(
            "triggers, truncate and insert",
            format!(
                "truncate item; insert into item (id, title) select n, 'after {word}' \
                 from generate_series({id}, {last}) n"
            ),
        ),
    }
}

/// Keys that two rows share for a while.
fn deferrable(rng: &mut StdRng) -> WorkUnit {
    let (one, two) = (rng.random_range(1..40), rng.random_range(1..40));
    let word: u32 = rng.random();
    let (table, key) = [
        ("place", "id"),
        ("place", "code"),
        ("seat", "id"),
        ("desk", "number"),
    ][rng.random_range(0..4)];
    let value = |value: i32| match table {
        "place" => format!("place (id, code, note) values ({value}, {value}, 'new {word}')"),
        _ => format!("{table} ({key}, note) values ({value}, 'new {word}')"),
    };
    match rng.random_range(0..100) {
        0..25 => WorkUnit::new("deferrable, insert", format!("insert into {}", value(one))),
        25..40 => WorkUnit::new(
            "deferrable, swap in one statement",
            format!(
                "update {table} set {key} = case {key} when {one} then {two} \
                 else {one} end, note = 'swapped {word}' \
                 where {key} in ({one}, {two})"
            ),
        ),
        40..58 => WorkUnit::new(
            "deferrable, swap over statements",
            format!(
                "set constraints all deferred; do $$ declare a bigint; b bigint; begin \
                 select mark into a from {table} where {key} = {one}; \
                 select mark into b from {table} where {key} = {two}; \
                 update {table} set {key} = {two} where mark = a; \
                 update {table} set {key} = {one} where mark = b; end $$"
            ),
        ),
        58..68 => WorkUnit::new(
            "deferrable, insert before the delete",
            format!(
                "set constraints all deferred; insert into {}; \
                 delete from {table} where {key} = {one} and note <> 'new {word}'",
                value(one)
            ),
        ),
        68..78 => WorkUnit::new(
            "deferrable, given up and taken",
            format!(
                "with moved as (update {table} set {key} = {two} where {key} = {one} \
                 returning *) insert into {}",
                value(one)
            ),
        ),
        78..84 => WorkUnit::new(
            "deferrable, all keys shift",
            format!("update {table} set {key} = {key} % 39 + 1"),
        ),
        _ => WorkUnit::new(
            "deferrable, delete",
            format!("delete from {table} where {key} = {one}"),
        ),
    }
}

/// Keys of parents that change or go.
fn cascades(rng: &mut StdRng) -> WorkUnit {
    let (region, other) = (rng.random_range(1..12), rng.random_range(1..12));
    let (town, nth) = (rng.random_range(1..6), rng.random_range(1..6));
    let word: u32 = rng.random();
    match rng.random_range(0..100) {
        0..20 => WorkUnit::new(
            "cascade, insert",
            format!(
                "insert into region values ({region}, 'region {word}') on conflict (id) do update \
                 set name = excluded.name; \
                 insert into town select {region}, n, 'town {word}' from generate_series(1, {town}) n \
                 on conflict do nothing; \
                 insert into street select {region}, n, m, 'street {word}' \
                 from generate_series(1, {town}) n, generate_series(1, {nth}) m \
                 on conflict do nothing"
            ),
        ),
        20..40 => WorkUnit::new(
            "cascade, insert",
            format!(
                "insert into person select {region} * 100 + n, {region}, {town}, 'person {word}' \
                 from generate_series(1, 9) n \
                 on conflict (id) do update set region = excluded.region, town = excluded.town"
            ),
        ),
        40..58 => WorkUnit::new(
            "cascade, update",
            format!("update region set id = {other} where id = {region}"),
        ),
        58..70 => WorkUnit::new(
            "cascade, update",
            format!("update town set id = {nth}, region = {other} where region = {region} and id = {town}"),
        ),
        70..84 => WorkUnit::new(
            "cascade, delete",
            format!("delete from region where id = {region}"),
        ),
        84..92 => WorkUnit::new(
            "cascade, delete",
            format!("delete from town where region = {region} and id = {town}"),
        ),
        92..95 => WorkUnit::new(
            "cascade, delete and insert",
            format!(
                "delete from region where id = {region}; \
                 insert into region values ({region}, 'again {word}'); \
             insert into town values ({region}, {town}, 'again {word}')"
            ),
        ),
        95..97 => WorkUnit::new("truncate cascade", "truncate region cascade"),
        97..98 => WorkUnit::new(
            "truncate cascade and insert",
            format!(
                "truncate region cascade; insert into region values ({region}, 'after {word}'); \
                 insert into town values ({region}, {town}, 'after {word}')"
            ),
        ),
        _ => WorkUnit::new(
            "cascade, delete",
            format!("delete from person where id % 50 = {region}"),
        ),
    }
}

/// Kinds of statements.
fn plain(rng: &mut StdRng, merge: bool) -> WorkUnit {
    let id = rng.random_range(1..80);
    let last = id + rng.random_range(0..12);
    let word: u32 = rng.random();
    match rng.random_range(0..100) {
        0..25 if merge => WorkUnit::new(
            "merge",
            format!(
                "merge into stock t using (select n as id from generate_series({id}, {last}) n) s \
                 on t.id = s.id when matched and t.amount % 4 = 3 then delete \
                 when matched then update set amount = t.amount + 1, note = 'merged {word}' \
                 when not matched and s.id % 5 = 0 then do nothing \
                 when not matched then insert (id, note) values (s.id, 'merged {word}')"
            ),
        ),
        0..50 => WorkUnit::new(
            "insert on conflict update",
            format!(
                "insert into stock select n, 0, 'put {word}' from generate_series({id}, {last}) n \
                 on conflict (id) do update set amount = stock.amount + 1, note = excluded.note \
                 where stock.amount % 7 <> 5"
            ),
        ),
        50..68 => WorkUnit::new(
            "delete and insert in one statement",
            format!(
                "with gone as (delete from stock where id between {id} and {last} returning *) \
                 insert into stock select id, amount + 1, 'back {word}' from gone where id % 4 <> 0"
            ),
        ),
        68..76 => WorkUnit::new(
            "delete and insert in one statement",
            format!(
                "with new as (insert into stock values ({id} + 100, 1, 'moved {word}') on conflict (id) \
                 do nothing returning *), gone as (delete from stock where id = {id} returning *), \
                 changed as (update stock set amount = amount + 1 where id = {last} + 1 returning *) \
                 select from new, gone, changed"
            ),
        ),
        76..94 => WorkUnit::new(
            "delete",
            format!("delete from stock where id between {id} and {last} or id = {id} + 100"),
        ),
        94..97 => WorkUnit::new("truncate", "truncate stock"),
        _ => WorkUnit::new(
            "truncate and insert",
            format!(
                "truncate stock; insert into stock select n, 0, 'after {word}' \
                 from generate_series({id}, {last}) n"
            ),
        ),
    }
}

/// Rows of a partitioned table, written through it and in a partition itself.
fn partitions(rng: &mut StdRng) -> WorkUnit {
    let (id, day, other) = (
        rng.random_range(1..40),
        rng.random_range(0..60),
        rng.random_range(0..60),
    );
    let last = id + rng.random_range(0..6);
    let word: u32 = rng.random();
    match rng.random_range(0..100) {
        0..30 => WorkUnit::new(
            "partitions, insert",
            format!(
                "insert into event select n, {day}, 'event {word}' from generate_series({id}, {last}) n \
                 on conflict (id, day) do update set note = excluded.note"
            ),
        ),
        30..60 => WorkUnit::new(
            "partitions, row moves",
            format!(
                "update event set day = {other}, note = 'moved {word}' where id between {id} and {last} \
                 and day = {day}"
            ),
        ),
        60..70 => WorkUnit::new(
            "partitions, row moves",
            format!("update event set day = (day + 20) % 60 where id = {id}"),
        ),
        70..80 => WorkUnit::new(
            "partition itself",
            format!(
                "insert into event_low select n, {day} % 20, 'low {word}' \
                 from generate_series({id}, {last}) n on conflict do nothing; \
                 update event_high set note = 'high {word}' where id = {id}; \
                 update event_high_1 set day = 20 + (day + 1) % 20 where id = {last}; \
                 delete from event_rest where id = {id}"
            ),
        ),
        80..87 => WorkUnit::new(
            "partition itself",
            format!(
                "insert into event_more select n, 40 + {day} % 20, 'more {word}' \
                 from generate_series({id}, {last}) n on conflict do nothing"
            ),
        ),
        87..99 => WorkUnit::new(
            "partitions, delete",
            format!("delete from event where id between {id} and {last} and day % 3 = {day} % 3"),
        ),
        _ => WorkUnit::new("partitions, truncate", "truncate event"),
    }
}

/// A table whose definition another writer changes: a column may have another name, type or none at all.
fn draft(rng: &mut StdRng) -> WorkUnit {
    let id = rng.random_range(1..300);
    let word: u32 = rng.random();
    match rng.random_range(0..100) {
        0..40 => WorkUnit::new(
            "draft, insert",
            format!(
                "insert into draft (id, memo) select n, 'memo {word}' from generate_series({id}, {id} + 5) n \
                 on conflict (id) do update set memo = excluded.memo"
            ),
        ),
        40..70 => WorkUnit::new(
            "draft, update",
            format!("update draft set amount = amount + 1 where id between {id} and {id} + 9"),
        ),
        70..80 => WorkUnit::new(
            "draft, update",
            format!("update draft set remark = 'remark {word}' where id between {id} and {id} + 9"),
        ),
        80..90 => WorkUnit::new(
            "draft, key",
            format!("update draft set id = id + 300 where id = {id}"),
        ),
        _ => WorkUnit::new(
            "draft, delete",
            format!("delete from draft where id in ({id}, {id} + 300)"),
        ),
    }
}
