-- What the receiver knows beside the rows themselves. The rows live in schema cloud, one table an entity.
--
-- A version orders the states of a row by when the site read them: `epoch` is the life of the site's outbox, and
-- `version` is term * 2^40 + batch.

-- A lock that is not free within this time fails the migration. The receiver's start can be repeated.
set local lock_timeout = '10s';

create schema if not exists cloud;

-- This database's identity, drawn once. All receivers on one database share it.
create table cloud_meta.receiver (
    only_row boolean primary key default true check (only_row),
    receiver_id uuid not null default gen_random_uuid()
);
insert into cloud_meta.receiver default values;

-- An entity's table, shared by all sites: the union of the columns that they declared. `version` rises with each
-- change of the table, so that a receiver knows when the columns that it remembers are old.
create table cloud_meta.entities (
    entity text primary key,
    key_columns text[] not null,
    column_names text[] not null,
    column_types text[] not null,
    version bigint not null default 1
);

-- Which entities a site has declared, where they lie below the base URL, and which source they belong to. A schema that
-- was declared without a source belongs to none.
create table cloud_meta.schemas (
    site text not null,
    entity text not null references cloud_meta.entities,
    path text not null,
    window_column text,
    source_id text,
    declared_at timestamptz not null default now(),
    primary key (site, entity),
    unique (site, path)
);

-- Deleted rows, with the version of the delete, so that no older change brings one back. They live apart from the
-- rows, so that a query sees living rows only. `key` is the JSON array of the key's values, each as text.
create table cloud_meta.tombstones (
    site text collate "C" not null,
    entity text collate "C" not null,
    key text collate "C" not null,
    epoch bigint not null,
    version bigint not null,
    primary key (site, entity, key)
);

-- The newest truncate of an entity: a tombstone for all of its rows at once.
create table cloud_meta.truncate_marks (
    site text not null,
    entity text not null,
    epoch bigint not null,
    version bigint not null,
    primary key (site, entity)
);

-- The newest batch that each source has sent. `nonce` is the random text of its term. `database` says which database the
-- source is. The source '' stands for baseline requests.
create table cloud_meta.sources (
    site text not null,
    source_id text not null,
    epoch bigint not null,
    term bigint not null,
    nonce text not null,
    batch bigint not null,
    database text,
    updated_at timestamptz not null default now(),
    primary key (site, source_id)
);

-- The last batches of each source: its batch n has slot n modulo their number. A batch that comes again with the same body
-- gets the answer that it had.
create table cloud_meta.batches (
    site text not null,
    source_id text not null,
    slot smallint not null,
    epoch bigint not null,
    term bigint not null,
    batch bigint not null,
    body_hash bytea not null,
    answer text not null,
    primary key (site, source_id, slot)
) with (fillfactor = 50);

-- Uploaded files. `stored` is the name below <files>/<site>/<directory>/.
create table cloud_meta.files (
    site text not null,
    directory text not null,
    stored text not null,
    hash text not null,
    name text not null,
    size bigint not null,
    created_at timestamptz not null default now(),
    primary key (site, directory, stored)
);
create index files_by_content on cloud_meta.files (site, directory, hash);

-- Every applied change, where the receiver was started with history. `digest` is the MD5 of the row as it then stood.
create table cloud_meta.history (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    site text not null,
    entity text not null,
    key text,
    epoch bigint not null,
    version bigint not null,
    op text not null,
    digest text
);

-- Locks that only this database's owner of schema cloud_meta can take: any role may hold an advisory lock for
-- ever, and nothing would be applied meanwhile.

-- One row a lock: a site's, and the one of all tables.
create table cloud_meta.locks (name text collate "C" primary key);

-- Takes the lock until the transaction ends.
create function cloud_meta.take_lock(lock text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform from cloud_meta.locks l where l.name = take_lock.lock for update;
    if not found then
        insert into cloud_meta.locks values (take_lock.lock) on conflict do nothing;
        perform from cloud_meta.locks l where l.name = take_lock.lock for update;
    end if;
end $$;
