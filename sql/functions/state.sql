-- What writers have to know of the replicator: sequence cloud_sync.state. See migrations/source.

-- set_state: sets the segment, or the time until which the replicator sleeps (seconds since 1970, 0 awake);
-- null leaves it. One session at a time, so that none undoes what another has set. It does not wait for the
-- disk: after a crash either value is right.
create or replace function cloud_sync.set_state(segment bigint, until bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp set synchronous_commit = off as $$
declare
    now_ bigint;
begin
    lock table cloud_sync.state_lock in exclusive mode;
    now_ := coalesce(pg_sequence_last_value('cloud_sync.state'), 0);
    perform setval('cloud_sync.state', (coalesce(until, now_ >> 16) << 16) + coalesce(segment, now_ & 65535));
end $$;

-- notify_sleeper: notifies a replicator that sleeps until then. A transaction that has notified cannot be
-- prepared. So if the server allows prepared transactions, nobody notifies, and the replicator polls.
create or replace function cloud_sync.notify_sleeper(until bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if until > extract(epoch from clock_timestamp())
        and current_setting('max_prepared_transactions') = '0'
    then
        perform pg_notify('cloud_sync', '');
    end if;
end $$;

-- touch: writes touches of one entity to the segment that writers use, each with its number or its key, and
-- notifies. Returns the transaction's number: a checkpoint whose lo sees it has accepted all of them.
create or replace function cloud_sync.touch(
    entity smallint, op "char", numbers bigint[], keys text[]
) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ bigint := coalesce(pg_sequence_last_value('cloud_sync.state'), 0);
begin
    execute format(
        'insert into cloud_sync.segment_%s (entity, op, number, key)
         select $1, $2, n, k from unnest($3, $4) u (n, k)', now_ & 65535)
        using entity, op, numbers, keys;
    if now_ > 65535 then
        perform cloud_sync.notify_sleeper(now_ >> 16);
    end if;
    return pg_current_xact_id()::text::bigint;
end $$;

-- hold_term: locks the term for the caller's transaction, and fails if it is no longer this one.
create or replace function cloud_sync.hold_term(mine bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform from cloud_sync.term t where t.term = mine for share;
    if not found then
        raise exception 'another replicator drains the outbox' using errcode = 'CS001';
    end if;
end $$;

-- unpark: touches the rows of a parked entity again, and notes that it is no longer parked. A truncate among
-- its touches comes behind what was written and delivered since, and takes that from the cloud too: the
-- entity is compared then.
create or replace function cloud_sync.unpark(mine bigint, place smallint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ bigint := coalesce(pg_sequence_last_value('cloud_sync.state'), 0);
begin
    perform cloud_sync.hold_term(mine);
    update cloud_sync.entity
        set gap = 'its table was truncated while it could not be read', gap_seen = clock_timestamp()
        where id = place and exists (select from cloud_sync.parked_key where entity = place and op = 't');
    execute format(
        'with gone as (delete from cloud_sync.parked_key where entity = $1 returning *)
         insert into cloud_sync.segment_%s (entity, op, number, key)
         select entity, op, number, key from gone order by op <> ''t''', now_ & 65535)
        using place;
    update cloud_sync.entity set parked = null, parked_at = null where id = place;
    if now_ > 65535 then
        perform cloud_sync.notify_sleeper(now_ >> 16);
    end if;
end $$;
