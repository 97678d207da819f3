-- Whose outbox it is, which cloud it was compared with, and whether the outbox is there at all.

-- name: system_id
-- The server, the database and the outbox. The numbers of database and outbox count too: what was dropped and
-- made again under the same name is another one.
select system_identifier || '/' || (select oid from pg_database where datname = current_database())
    || '/' || current_database() || '/' || 'cloud_sync.outbox'::regclass::oid
from pg_control_system()

-- name: create
-- Writes the identity if there is none. Without a configured name, the source is named after server and
-- database: the same database has the same name again after `uninstall` and `init`, and another one another
-- name.
-- $1 the system id
insert into cloud_sync.identity (system_id, source_id)
select $1,
       'db-' || system_identifier || '-' || (select oid from pg_database where datname = current_database())
from pg_control_system()
on conflict do nothing

-- name: declare_same
-- The outbox is the same one on another server, whose system id is $1.
update cloud_sync.identity set system_id = $1

-- name: empty_outbox
-- The outbox becomes a new one. The transaction numbers of a restored outbox are another server's: its
-- touches cannot be ordered here. So every entity is compared. It waits for a segment that an open
-- transaction has written to, but no writer waits behind that: the lock is given up soon, and the caller
-- tries again.
begin;
set local lock_timeout = '2s';
do $$
declare
    name text;
begin
    for name in select inhrelid::regclass::text from pg_catalog.pg_inherits
        where inhparent = 'cloud_sync.outbox'::regclass
    loop
        execute 'truncate only ' || name;
    end loop;
end $$;
truncate cloud_sync.parked_key, cloud_sync.unanswered;
delete from cloud_sync.checkpoint;
delete from cloud_sync.backfill;
delete from cloud_sync.term_nonce;
update cloud_sync.entity
set parked = null, gap = 'the outbox was declared a new one', gap_seen = clock_timestamp();
commit

-- name: declare_new
-- $1 the system id
update cloud_sync.identity
set epoch = epoch + 1, epoch_settled = false, declared_new = true,
    outbox_id = gen_random_uuid(), system_id = $1

-- name: stored
select outbox_id::text, system_id, epoch, epoch_settled, declared_new, cloud, source_id
from cloud_sync.identity

-- name: note_cloud
-- $1 the drain's term   $2 the cloud
update cloud_sync.identity set cloud = $2 from cloud_sync.hold_term($1) mine

-- name: timeline
-- The server's timeline; null on a standby.
select case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) end

-- name: sequence_is_sound
-- Whether positions are taken one by one.
select seqcache = 1 and seqincrement = 1 and not seqcycle
from pg_sequence
where seqrelid = 'cloud_sync.position'::regclass

-- name: is_installed
select to_regclass('cloud_sync.entity') is not null
