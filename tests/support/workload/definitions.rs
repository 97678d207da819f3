//! What one writer changes in the definitions of tables while the others write to them.

use rand::RngExt;
use rand::rngs::StdRng;

use super::kinds::WorkUnit;

/// How often a change whose lock is not free is tried.
pub(super) const TRIES: u32 = 6;

/// A name has one type: other tests show how the cloud merges the types that a column had.
const ADD_COLUMN: [&str; 9] = [
    "alter table draft add column count int default 7",
    "alter table draft add column count int",
    "alter table draft add column status text default 'given'",
    "alter table draft add column status text",
    "alter table draft add column ratio float8 default random()",
    "alter table draft add column twice bigint generated always as (id * 2) stored",
    "alter table event add column count int default 5",
    "alter table event add column status text",
    "alter table stock add column status text default 'stock'",
];

const DROP_COLUMN: [&str; 7] = [
    "alter table draft drop column count",
    "alter table draft drop column status",
    "alter table draft drop column if exists twice, drop column if exists ratio",
    "begin; alter table draft drop column count; alter table draft add column count int; commit",
    "alter table event drop column count",
    "alter table event drop column status",
    "alter table stock drop column status",
];

/// Each rewrites the table, but for the change between `varchar` and `text`.
const CHANGE_TYPE: [&str; 6] = [
    "alter table draft alter column amount type bigint using amount + 1",
    "alter table draft alter column amount type int using amount % 1000",
    "alter table stock alter column amount type bigint",
    "alter table stock alter column amount type int using amount % 1000 + 1",
    "alter table person alter column name type varchar(200)",
    "alter table person alter column name type text using upper(name)",
];

const RENAME_COLUMN: [&str; 2] = [
    "alter table draft rename column memo to remark",
    "alter table draft rename column remark to memo",
];

const UNLOGGED: [&str; 2] = ["alter table draft set unlogged", "alter table draft set logged"];

/// Where the default partition has rows of the range, they make room first.
const PARTITION_COMES: [&str; 5] = [
    "begin; delete from event_rest where day between 60 and 79; \
     create table event_soon partition of event for values from (60) to (80); commit",
    "begin; delete from event_rest where day between 60 and 79; \
     create table event_soon partition of event for values from (60) to (80); \
     insert into event_soon (id, day, note) select n, 65, 'straight' from generate_series(1, 9) n; commit",
    "begin; create table event_more (like event including all); \
     with moved as (delete from event_rest where day between 40 and 59 returning *) \
     insert into event_more select * from moved; \
     alter table event attach partition event_more for values from (40) to (60); commit",
    "begin; delete from event_rest where day between 40 and 59; \
     alter table event attach partition event_more for values from (40) to (60); commit",
    "begin; delete from event_rest where day between 60 and 79; \
     alter table event attach partition event_soon for values from (60) to (80); commit",
];

const PARTITION_GOES: [&str; 6] = [
    "alter table event detach partition event_soon",
    "alter table event detach partition event_more",
    "drop table event_soon",
    "drop table event_more",
    "begin; alter table event detach partition event_more; insert into event select * from event_more; \
     drop table event_more; commit",
    "begin; drop table event_soon; delete from event_rest where day between 60 and 79; \
     create table event_soon partition of event for values from (60) to (80); commit",
];

const PARTITION_TRUNCATED: [&str; 4] = [
    "truncate event_low",
    "truncate event_high_1",
    "truncate event_soon",
    "begin; truncate event_high; insert into event_high (id, day, note) values (1, 25, 'after'); commit",
];

/// The server wants these outside a transaction block.
const REWRITE: [&str; 9] = [
    "vacuum full draft",
    "vacuum full stock",
    "vacuum full item",
    "vacuum full event_low",
    "vacuum full region",
    "cluster draft using draft_pkey",
    "cluster stock using stock_pkey",
    "cluster event_low using event_low_pkey",
    "cluster pot using pot_pkey",
];

/// Locks that the replicator waits for in vain: it parks the entity, and goes on with it later.
const LOCK_HELD: [&str; 4] = [
    "begin; lock table draft in access exclusive mode; select pg_sleep(4); commit",
    "begin; alter table stock alter column note type text using lower(note); select pg_sleep(4); commit",
    "begin; lock table event_low in access exclusive mode; select pg_sleep(4); \
     update event_low set note = 'held'; commit",
    "begin; truncate seat; select pg_sleep(4); insert into seat (id, note) values (1, 'after'); commit",
];

/// One change of a definition, or a write to a partition that comes and goes.
pub(super) fn change(rng: &mut StdRng) -> WorkUnit {
    let (kind, sqls): (_, &[&str]) = match rng.random_range(0..100) {
        0..15 => ("add a column", &ADD_COLUMN),
        15..25 => ("drop a column", &DROP_COLUMN),
        25..37 => ("change a type", &CHANGE_TYPE),
        37..47 => ("rename a column", &RENAME_COLUMN),
        47..55 => ("unlogged and logged", &UNLOGGED),
        55..66 => ("partition comes", &PARTITION_COMES),
        66..75 => ("partition goes", &PARTITION_GOES),
        75..79 => ("partition truncated", &PARTITION_TRUNCATED),
        79..88 => ("vacuum full, cluster", &REWRITE),
        88..94 => ("lock held", &LOCK_HELD),
        _ => return write_to_partition(rng),
    };
    WorkUnit {
        kind,
        sql: sqls[rng.random_range(0..sqls.len())].to_owned(),
    }
}

/// Writes to a partition that may have no triggers of its own yet, or be no partition any more.
fn write_to_partition(rng: &mut StdRng) -> WorkUnit {
    let word: u32 = rng.random();
    WorkUnit {
        kind: "new partition itself",
        sql: format!(
            "insert into event_soon (id, day, note) select n, 61 + n % 19, 'soon {word}' \
             from generate_series(1, 30) n \
             on conflict (id, day) do update set note = excluded.note; \
             delete from event_soon where id % 7 = 3"
        ),
    }
}
