-- What the receiver knows beside the rows themselves. The rows live in schema cloud, one table an entity.

create schema if not exists cloud;

-- An entity's table, shared by all sites: the union of the columns that they declared. `version` rises with each
-- change of the table, so that a receiver knows when the columns that it remembers are old.
create table cloud_meta.entities (
    entity text primary key,
    key_columns text[] not null,
    column_names text[] not null,
    column_types text[] not null,
    version bigint not null default 1
);

-- Which entities a site has declared, and where they lie below the base URL.
create table cloud_meta.schemas (
    site text not null,
    entity text not null references cloud_meta.entities,
    path text not null,
    window_column text,
    declared_at timestamptz not null default now(),
    primary key (site, entity),
    unique (site, path)
);

-- Deleted rows, with the place of the delete, so that no older change brings one back. They live apart from the
-- rows, so that a query sees living rows only. `key` is the JSON array of the key's values, each as text.
create table cloud_meta.tombstones (
    site text collate "C" not null,
    entity text collate "C" not null,
    key text collate "C" not null,
    epoch bigint not null,
    position bigint not null,
    primary key (site, entity, key)
);

-- The newest truncate of an entity: a tombstone for all of its rows at once.
create table cloud_meta.truncate_marks (
    site text not null,
    entity text not null,
    epoch bigint not null,
    position bigint not null,
    primary key (site, entity)
);

-- The highest position that each source has sent, a row an epoch. The source '' stands for baseline requests.
create table cloud_meta.sources (
    site text not null,
    source_id text not null,
    epoch bigint not null,
    position bigint not null,
    updated_at timestamptz not null default now(),
    primary key (site, source_id, epoch)
);

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
    position bigint not null,
    op text not null,
    digest text
);
