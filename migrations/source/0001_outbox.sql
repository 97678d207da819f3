-- The outbox and what the replicator keeps beside it, all in schema cloud_sync of the site's database.
--
-- outbox: one row a change, written by the capture triggers in the writer's own transaction. It has no rows of its own:
-- they lie in four slots, tables that inherit from it. A statement writes to the slot that its position selects
-- (65,536 positions a slot, round and round), so that a slot which is wholly accepted can be truncated, which gives its
-- space back at once, while writers go on in another. Several rounds may lie in one slot while the cloud is away.

create sequence position as bigint cache 1;

create table outbox (
    position    bigint      not null,
    xid         xid8        not null default pg_current_xact_id(),
    captured_at timestamptz not null default clock_timestamp(),
    entity      smallint    not null,
    op          "char"      not null,   -- u upsert, d delete, t truncate
    key         text        not null,   -- JSON object of the key columns; empty for a truncate
    image       text                    -- JSON object of the row; null for a delete, a truncate, and an image withheld
);

create table outbox_0 () inherits (outbox);
create table outbox_1 () inherits (outbox);
create table outbox_2 () inherits (outbox);
create table outbox_3 () inherits (outbox);

create index outbox_0_position on outbox_0 (position);
create index outbox_1_position on outbox_1 (position);
create index outbox_2_position on outbox_2 (position);
create index outbox_3_position on outbox_3 (position);

-- Slots are emptied by truncate, never by delete: there is nothing to vacuum but what rolled back.
alter table outbox_0 set (autovacuum_vacuum_insert_threshold = -1);
alter table outbox_1 set (autovacuum_vacuum_insert_threshold = -1);
alter table outbox_2 set (autovacuum_vacuum_insert_threshold = -1);
alter table outbox_3 set (autovacuum_vacuum_insert_threshold = -1);

-- identity: which outbox this is. The epoch rises when an operator declares the outbox a new one.
create table identity (
    only_row   boolean     primary key default true check (only_row),
    outbox_id  uuid        not null default gen_random_uuid(),
    epoch      bigint      not null default 1,
    system_id  text        not null,
    trimmed    bigint      not null default 0,   -- the highest position that was trimmed
    created_at timestamptz not null default now()
);

-- entity: the number that stands for an entity in the outbox, and what its triggers were made from.
create table entity (
    id          smallint    generated always as identity primary key,
    name        text        not null unique,
    relation    text        not null,
    relid       oid         not null,
    definition  text        not null,
    attached_at timestamptz not null default now(),
    detached_at timestamptz
);

-- checkpoint: the mirror of the checkpoint in the local store, one row a source id; never ahead of it.
create table checkpoint (
    source_id   text        primary key,
    serial      bigint      not null,
    body        text        not null,
    mirrored_at timestamptz not null default now()
);

-- quarantine: changes that the cloud refused for good, the last one of each row.
create table quarantine (
    entity           text        not null,
    key              text        not null,
    position         bigint      not null,
    op               "char"      not null,
    image            text,
    code             integer     not null,
    error            text        not null,
    attempts         integer     not null default 1,
    first_refused_at timestamptz not null default now(),
    refused_at       timestamptz not null default now(),
    primary key (entity, key)
);

-- backfill: how far the one-shot push of each entity has come.
create table backfill (
    entity      text        primary key,
    days        integer,                 -- null: all rows
    after_key   text,                    -- the last pushed row's key as a JSON object
    pushed      bigint      not null default 0,
    started_at  timestamptz not null default now(),
    finished_at timestamptz
);

-- media: what is known of each file that a row names; media_ref: the rows that name it.
create table media (
    path         text        primary key,  -- below the media root
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
    key    text not null,
    primary key (path, entity, key)
);
