-- The segments of the outbox: adds them, sends writers from one to another, and truncates them.

-- add_segment: creates the next segment. Segments are emptied by truncate, never by delete: there is nothing
-- to vacuum but what rolled back.
create or replace function cloud_sync.add_segment() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    number integer := (
        select count(*) from pg_inherits where inhparent = 'cloud_sync.outbox'::regclass);
begin
    execute format(
        'create table cloud_sync.segment_%s () inherits (cloud_sync.outbox)
         with (autovacuum_vacuum_insert_threshold = -1)', number);
    execute format('create index segment_%1$s_position on cloud_sync.segment_%1$s (position)', number);
    return number;
end $$;

-- trim_segment: truncates one segment if each of its touches is visible in the snapshot and at or below the
-- position: the cloud has accepted all of them. It leaves the segment that writers use. Never waits for a
-- lock. Returns the bytes given back, or null if the segment stays.
create or replace function cloud_sync.trim_segment(
    mine bigint, segment integer, accepted pg_snapshot, upto bigint
) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    tab     text := format('cloud_sync.segment_%s', segment);
    bytes   bigint := pg_total_relation_size(tab);
    pending boolean;
begin
    if pg_relation_size(tab) = 0
        or coalesce(pg_sequence_last_value('cloud_sync.state'), 0) & 65535 = segment
    then
        return null;
    end if;
    -- The last touch first: in a long backlog it is not accepted yet, and then nothing else need be read.
    execute format(
        'select position > $1 or not pg_visible_in_snapshot(xid, $2)
         from only %s order by position desc limit 1', tab)
        into pending using upto, accepted;
    if pending then
        return null;
    end if;
    perform cloud_sync.hold_term(mine);
    begin
        execute format('lock table only %s in access exclusive mode nowait', tab);
    exception when lock_not_available then
        return null;
    end;
    -- While the lock is held no writer has an uncommitted touch here. This statement sees what was committed
    -- before.
    execute format(
        'select exists (
             select from only %s where position > $1 or not pg_visible_in_snapshot(xid, $2))', tab)
        into pending using upto, accepted;
    if pending then
        return null;
    end if;
    execute format('truncate only %s', tab);
    return bytes - pg_total_relation_size(tab);
end $$;

-- rotate: sends writers to another segment, so that the one that they use now can be truncated when those who
-- write in it have ended: to the first that is empty. If none is empty and the present one is large, it adds
-- one. Returns whether writers were sent to another segment.
create or replace function cloud_sync.rotate(large bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_  integer := coalesce(pg_sequence_last_value('cloud_sync.state'), 0) & 65535;
    bytes bigint := pg_relation_size(format('cloud_sync.segment_%s', now_));
    next  integer;
begin
    if bytes = 0 then
        return false;
    end if;
    select min(segment) into next
        from generate_series(0, (
            select count(*)::int - 1 from pg_inherits
            where inhparent = 'cloud_sync.outbox'::regclass)) segment
        where segment <> now_ and pg_relation_size(format('cloud_sync.segment_%s', segment)) = 0;
    if next is null then
        if bytes < large then
            return false;
        end if;
        next := cloud_sync.add_segment();
    end if;
    perform cloud_sync.set_state(next, null);
    return true;
end $$;
