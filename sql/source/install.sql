-- Puts capture in place and takes it away.

-- name: server
-- The server's version, as a number and in words, and whether it is a standby.
select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()

-- name: create_schema
create schema if not exists cloud_sync

-- name: has_rows
-- Whether schema cloud_sync is of a version whose outbox holds rows and not touches.
select to_regclass('cloud_sync.outbox_0') is not null

-- name: begin_migrating
-- Of two `init`s at once one waits for the other's lock on this table, which no other role may take.
create table if not exists cloud_sync.migrating (); begin; lock table cloud_sync.migrating in exclusive mode

-- name: migrations_path
-- The session that migrates: the migrations name our tables without their schema.
set search_path = cloud_sync, pg_temp

-- name: applied_migrations
-- The migrations that were applied, with the hash of each.
select version, checksum from cloud_sync._sqlx_migrations where success order by version

-- name: may_migrate
-- Whether the session's role owns schema cloud_sync, or is a member of the role that does.
select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = 'cloud_sync'

-- name: number_entity
-- $1 name   $2 table   $3 the table's oid. Returns the entity's number, and what of its rows was sent before.
insert into cloud_sync.entity (name, relation, relid, definition)
values ($1, $2, $3, '')
on conflict (name) do update set relation = excluded.relation, relid = excluded.relid
returning id, selection

-- name: attach
-- {functions} the entity's capture functions, {triggers} drops and creates triggers, {gaps} marks gaps
begin; set local lock_timeout = '2s';
{functions}{triggers}{gaps}select cloud_sync.note_shape({id}::smallint, {oid});
update cloud_sync.entity
set definition = {definition}, selection = {selection}, signature = cloud_sync.signature({id}::smallint),
    attached_at = now(), detached_at = null
where id = {id};
commit;

-- part: drop_trigger
drop trigger if exists {trigger} on {table};

-- part: drop_function
drop function if exists cloud_sync.{function}();

-- part: mark_added_partition
-- Marks a gap if a partition that was added has or had rows. One that was never written to needs no
-- comparison. A row that was sent and has left without a trigger leaves a file that has a size, or is
-- another, or was vacuumed.
update cloud_sync.entity set gap = {gap}, gap_seen = clock_timestamp()
where id = {id} and exists (
    select from pg_class c
    where c.oid = {partition}::regclass and c.relkind = 'r'
      and (pg_relation_size(c.oid) > 0 or c.relfilenode <> c.oid or c.reltuples >= 0));

-- part: mark_gap
update cloud_sync.entity set gap = {gap}, gap_seen = clock_timestamp() where id = {id};

-- name: attached
-- The entities whose capture is in place.
select id, name from cloud_sync.entity where detached_at is null

-- name: detach
-- {triggers} and {functions} drop those of the entity
begin; set local lock_timeout = '2s';
{triggers}{functions}update cloud_sync.entity set detached_at = now() where id = {id};
commit;

-- name: drop_schema
drop schema cloud_sync cascade
