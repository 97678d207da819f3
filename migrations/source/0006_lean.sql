-- Capture at less cost: what a writer has to know of the replicator lies in one sequence.

-- slot: its last value says in its lowest bit whether the replicator may sleep, and in the next two which slot writers use
-- now. A writer reads it without a lock; whoever sets it holds the advisory lock of set_slot.
select setval('slot', coalesce(pg_sequence_last_value('slot'), 0) * 2 + 1);

-- position: taken by default. Named in a query, a volatile function costs that query a step of its own.
alter table outbox alter column position set default nextval('position');

-- document: the image of a row that is captured as it is, without a copy from json to text; its key is in it, and not written
-- again. Either this or image is there.
alter table outbox add column document json;

-- Images above 2 KB are compressed, where the server can by lz4: the default takes several times longer.
do $$
begin
    for slot in 0..3 loop
        execute format('alter table outbox_%s alter column image set compression lz4, alter column document set compression lz4', slot);
    end loop;
exception when feature_not_supported then
    null;
end $$;

-- set_slot: sets what the sequence says, one session at a time, so that none undoes what another has set. Not waited for on
-- the disk: after a crash either value is right, since nobody sleeps then and the slot in use is any.
create function set_slot(move bigint, asleep boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ bigint;
begin
    perform pg_advisory_xact_lock(7164223657227018604);
    perform set_config('synchronous_commit', 'off', true);
    now_ := coalesce(pg_sequence_last_value('cloud_sync.slot'), 0);
    perform setval('cloud_sync.slot',
        ((now_ >> 1) + move) * 2 + case when coalesce(asleep, now_ & 1 = 1) then 1 else 0 end);
end $$;

-- asleep: says whether the replicator may sleep. Where it does not, writers need not look whether it does.
create function asleep(asleep boolean) returns void
language sql set search_path = pg_catalog, pg_temp as $$ select cloud_sync.set_slot(0, asleep) $$;

-- put: writes one change to the outbox, in the slot that is used now. Returns the position.
create or replace function put(entity smallint, op "char", key text, image text) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
declare
    p bigint;
begin
    -- The transaction's number first: a window begins above the positions that were taken before its transactions began.
    perform pg_current_xact_id();
    p := nextval('cloud_sync.position');
    case coalesce(pg_sequence_last_value('cloud_sync.slot'), 0) >> 1 & 3
        when 0 then insert into cloud_sync.outbox_0 (position, entity, op, key, image) values (p, entity, op, key, image);
        when 1 then insert into cloud_sync.outbox_1 (position, entity, op, key, image) values (p, entity, op, key, image);
        when 2 then insert into cloud_sync.outbox_2 (position, entity, op, key, image) values (p, entity, op, key, image);
        else        insert into cloud_sync.outbox_3 (position, entity, op, key, image) values (p, entity, op, key, image);
    end case;
    return p;
end $$;

-- trim_slot: truncates one slot where each of its rows is visible in the snapshot and at or below the position: all of them
-- accepted by the cloud. The slot that writers use is left: see move_on. Never waits for a lock. Returns the bytes given
-- back, or null where the slot stays.
create or replace function trim_slot(slot integer, accepted pg_snapshot, upto bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
declare
    tab     text := format('cloud_sync.outbox_%s', slot);
    bytes   bigint := pg_total_relation_size(tab);
    pending boolean;
    highest bigint;
    check_  text := format('select exists (select from only %s where position > $1 or not pg_visible_in_snapshot(xid, $2))', tab);
begin
    if pg_relation_size(tab) = 0 or coalesce(pg_sequence_last_value('cloud_sync.slot'), 0) >> 1 & 3 = slot then
        return null;
    end if;
    -- The last row first: in a long backlog it is not accepted yet, and that is known without reading the slot.
    execute format('select position > $1 or not pg_visible_in_snapshot(xid, $2) from only %s order by position desc limit 1', tab)
        into pending using upto, accepted;
    if pending then
        return null;
    end if;
    execute check_ into pending using upto, accepted;
    if pending then
        return null;
    end if;
    begin
        execute format('lock table only %s in access exclusive mode nowait', tab);
    exception when lock_not_available then
        return null;
    end;
    -- Under the lock no writer has a row in flight here; what was committed since the first look is seen now.
    execute check_ into pending using upto, accepted;
    if pending then
        return null;
    end if;
    execute format('select max(position) from only %s', tab) into highest;
    update cloud_sync.identity set trimmed = greatest(trimmed, highest);
    execute format('truncate only %s', tab);
    return bytes - pg_total_relation_size(tab);
end $$;

-- move_on: sends writers to the next slot, so that the one which they use now can be trimmed when those who write in it
-- have ended; where it holds something, and the next one is empty. Returns whether they were sent on.
create or replace function move_on() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ bigint := coalesce(pg_sequence_last_value('cloud_sync.slot'), 0) >> 1;
begin
    if pg_relation_size(format('cloud_sync.outbox_%s', now_ & 3)) = 0
        or pg_relation_size(format('cloud_sync.outbox_%s', (now_ + 1) & 3)) > 0 then
        return false;
    end if;
    perform cloud_sync.set_slot(1, null);
    return true;
end $$;
