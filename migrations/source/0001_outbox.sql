-- The outbox and what the replicator keeps beside it, all in schema cloud_sync of the site's database.
--
-- outbox: one row a touch. Capture triggers write it in the writer's own transaction: entity and key of a row that the
-- transaction wrote, and nothing of its values. The replicator reads the row's present state when it sends it.
-- The table itself has no rows: they are in segments, tables that inherit from it. Writers use one segment at a time. A
-- segment whose touches are all accepted is truncated, which gives its space back at once.
--
-- The order of the columns matters: the transaction's number is taken before the position. A window begins above the
-- positions that were taken before its transactions began.

set local lock_timeout = '5s';

create sequence position as bigint cache 1;

create table outbox (
    xid         xid8        not null default pg_current_xact_id(),
    position    bigint      not null default nextval('position'),
    captured_at timestamptz not null default clock_timestamp(),
    number      bigint,                 -- the key, where it is one integer
    entity      smallint    not null,
    op          "char"      not null,   -- w written, m the old key of a row whose key changed, t truncated, g not known which rows
    key         text                    -- the key's text otherwise; of several columns the text of an array of their texts
);

-- The outbox itself never has a row. Its index lets the planner merge the segments by theirs, with no sort in between.
create index outbox_position on outbox (position);

-- state: what a writer has to know of the replicator, in one number that is read without a lock: the segment that writers use
-- (16 bits), above it the second since 1970 until which the replicator sleeps and wants to be notified; 0 while it is awake.
create sequence state as bigint minvalue 0 start 0 cache 1;
select setval('state', 0);

-- state_lock, leader: nothing but names that can be locked, by roles that may write in this schema.
create view state_lock as select 1 as held;
create view leader as select 1 as held;

-- identity: which outbox this is. The epoch rises when an operator declares the outbox a new one, and is settled once it lies
-- above all that the cloud knows of this source. cloud: which cloud the rows were compared with last.
create table identity (
    only_row      boolean     primary key default true check (only_row),
    outbox_id     uuid        not null default gen_random_uuid(),
    source_id     text        not null,
    system_id     text        not null,
    epoch         bigint      not null default 1,
    epoch_settled boolean     not null default false,
    declared_new  boolean     not null default false,
    cloud         text,
    created_at    timestamptz not null default now()
);

-- incarnation: one life of the server between two crash recoveries. PostgreSQL empties an unlogged table in each of them, and on
-- a standby that is promoted.
create unlogged table incarnation (
    only_row boolean primary key default true check (only_row),
    id       uuid    not null
);

-- term: who drains. Whatever a drain writes here is written under a lock on this row, and only while the term is its own.
create table term (
    only_row boolean     primary key default true check (only_row),
    term     bigint      not null default 0,
    ended    boolean     not null default true,   -- in order: no request is without an answer
    begun_at timestamptz not null default now()
);
insert into term default values;

-- term_nonce: the random name of each term. The cloud takes a new term only from who knows the name of the one before it.
create table term_nonce (
    term  bigint primary key,
    nonce text   not null
);

-- entity: the number that stands for an entity in the outbox, what its triggers were made from (definition), and what of its
-- rows is sent (selection).
-- shape: the columns as they were last seen. signature: the triggers and functions as `init` made them.
-- gap: why rows of the cloud may differ although nothing waits; a comparison of all its rows closes it.
-- parked: why it cannot be read or sent now; its touches wait in parked_key.
create table entity (
    id          smallint    generated always as identity primary key,
    name        text        not null unique,
    relation    text        not null,
    relid       oid         not null,
    definition  text        not null,
    selection   text,
    shape       text,
    signature   text,
    gap         text,
    gap_seen    timestamptz,
    parked      text,
    parked_at   timestamptz,
    attached_at timestamptz not null default now(),
    detached_at timestamptz
);

-- parked_key: the touches of entities that are parked.
create table parked_key (
    entity smallint not null,
    op     "char"   not null,
    number bigint,
    key    text
);
create index parked_key_entity on parked_key (entity);

-- checkpoint: the mirror of the checkpoint in the local store, one row a source id.
create table checkpoint (
    source_id   text        primary key,
    term        bigint      not null,
    serial      bigint      not null,
    body        text        not null,
    mirrored_at timestamptz not null default now()
);

-- quarantine: rows that the cloud refused or that cannot be read, the last refusal of each. provisional: a server without
-- `changes` refused it once; it counts when it is refused again behind the rest of its window. next_attempt: when it is touched
-- again by itself, where the cloud may yet take it.
create table quarantine (
    entity           text        not null,
    key              text        not null,
    position         bigint      not null,
    op               "char"      not null,   -- u upsert, d delete, t truncate, r cannot be read
    image            text,
    code             integer     not null,
    error            text        not null,
    attempts         integer     not null default 1,
    provisional      boolean     not null default false,
    next_attempt     timestamptz,
    first_refused_at timestamptz not null default now(),
    refused_at       timestamptz not null default now()
);
-- A key may be longer than what an index can hold.
create unique index quarantine_row on quarantine (entity, md5(key));
create index quarantine_next on quarantine (next_attempt) where next_attempt is not null;

-- unanswered: rows whose request to a server without `changes` got no answer. Such a request may still arrive; the rows are
-- touched again when it no longer can.
create table unanswered (
    entity text        not null,
    key    text        not null,
    due    timestamptz not null
);

-- sent: for entities with a condition, on a server without `changes`: hashes of the keys that the cloud may have.
create table sent (
    entity smallint not null,
    digest uuid     not null,
    primary key (entity, digest)
);

-- backfill: how far the one-shot push of each entity has come: a page of one table or partition.
create table backfill (
    entity      text        primary key,
    days        integer,                 -- null: all rows
    relid       oid         not null default 0,
    filenode    oid         not null default 0,
    page        bigint      not null default 0,
    pushed      bigint      not null default 0,
    started_at  timestamptz not null default now(),
    finished_at timestamptz
);

-- media: what is known of each file that a row names; media_ref: the rows that name it.
create table media (
    path         text        primary key,  -- below the media root; of a longer one than a file can have, its beginning
    directory    text        not null,
    state        text        not null default 'waiting'
                 check (state in ('waiting', 'missing', 'uploaded', 'refused')),
    size         bigint,
    modified_us  bigint,                   -- microseconds since 1970
    hash         text,                     -- blake3, hexadecimal
    url          text,
    error        text,
    attempts     integer     not null default 0,
    next_attempt timestamptz not null default now(),
    uploaded_at  timestamptz
);

create index media_waiting on media (next_attempt) where state in ('waiting', 'missing');

create table media_ref (
    path   text not null references media on delete cascade,
    entity text not null,
    key    text not null
);
create unique index media_ref_row on media_ref (path, entity, md5(key));

-- One row that is updated over and over, or few: dead versions are taken away early.
alter table identity set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table term set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table checkpoint set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table entity set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table backfill set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table quarantine set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
alter table media set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
alter table media_ref set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
