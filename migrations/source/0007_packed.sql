-- Capture at less cost, once more: images are packed, and the common case is one statement.

-- layout: the names of the columns of rows that are packed, in their order. A fingerprint stands for names and types.
create table layout (
    id          integer generated always as identity primary key,
    fingerprint text    not null unique,
    columns     text[]  not null
);

-- packed: a row as PostgreSQL sends it (record_send), whose columns `layout` names; its key is in it. It takes less than half
-- the time of its JSON, which the replicator makes of it. One of packed, document and image is there.
alter table outbox alter column key drop not null, add column layout integer, add column packed bytea;

do $$
begin
    for slot in 0..3 loop
        execute format('alter table outbox_%s alter column packed set compression lz4', slot);
    end loop;
exception when feature_not_supported then
    null;
end $$;

-- row_layout: the columns of a table, and the fingerprint of their names and types; null where rows cannot be packed. They
-- come from the row type as it is now, and not as the snapshot of a long transaction shows the catalog.
create function row_layout(relation regclass, out fingerprint text, out columns text[])
language plpgsql stable set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
begin
    if current_setting('server_encoding') <> 'UTF8' then
        return;
    end if;
    execute format('select md5(row_to_json(r)::text || encode(record_send(r), ''hex'')), array(select json_object_keys(row_to_json(r)))
                    from jsonb_populate_record(null::%s, ''{}'') r', relation) into fingerprint, columns;
exception when others then
    -- A type that no null fits, or that cannot be sent.
    fingerprint := null;
end $$;

-- layout_of: the fingerprint of a table's columns, for capture functions. It says of itself that it never changes, so that the
-- planner asks it once, when it makes a session's plan. The plan is made anew whenever the table is altered, as its name is in it.
create function layout_of(relation regclass) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select fingerprint from cloud_sync.row_layout(relation)
$$;

-- note_layout: the number and the fingerprint of a table's layout now; none where its rows cannot be packed.
create function note_layout(relation regclass) returns table (number integer, print text)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ record := cloud_sync.row_layout(relation);
begin
    if now_.fingerprint is null then
        return;
    end if;
    insert into cloud_sync.layout (fingerprint, columns) values (now_.fingerprint, now_.columns) on conflict do nothing;
    return query select l.id, l.fingerprint from cloud_sync.layout l where l.fingerprint = now_.fingerprint;
end $$;

-- slot: its last value says in its lowest bit whether the replicator may sleep, and in the next two which slot writers use
-- now, and nothing else: a capture function compares it with a number. Nobody sleeps where there never was a replicator.
select setval('slot', case when exists (select from identity) then pg_sequence_last_value('slot') & 7 else 0 end);

-- set_slot: sets what the sequence says, one session at a time, so that none undoes what another has set; null leaves it.
-- Not waited for on the disk: after a crash either value is right, since nobody sleeps then and the slot in use is any.
drop function set_slot(bigint, boolean);
create function set_slot(slot bigint, asleep boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ bigint;
begin
    perform pg_advisory_xact_lock(7164223657227018604);
    perform set_config('synchronous_commit', 'off', true);
    now_ := coalesce(pg_sequence_last_value('cloud_sync.slot'), 0);
    perform setval('cloud_sync.slot', coalesce(slot, now_ >> 1 & 3) * 2 + coalesce(asleep::int, now_ & 1));
end $$;

create or replace function asleep(asleep boolean) returns void
language sql set search_path = pg_catalog, pg_temp as $$ select cloud_sync.set_slot(null, asleep) $$;

-- move_on: sends writers to another slot, so that the one which they use now can be trimmed when those who write in it have
-- ended; where it holds something, and another is empty: the first, as a capture function finds the first two soonest.
-- Returns whether they were sent on.
create or replace function move_on() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ bigint := coalesce(pg_sequence_last_value('cloud_sync.slot'), 0) >> 1 & 3;
    next bigint;
begin
    if pg_relation_size(format('cloud_sync.outbox_%s', now_)) = 0 then
        return false;
    end if;
    select min(slot) into next from generate_series(0, 3) slot
        where slot <> now_ and pg_relation_size(format('cloud_sync.outbox_%s', slot)) = 0;
    if next is null then
        return false;
    end if;
    perform cloud_sync.set_slot(next, null);
    return true;
end $$;
