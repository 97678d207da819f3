-- What is known of each entity's capture, so that whatever escaped it is noticed; and slots that writers leave before they
-- are truncated.

-- shape: the columns as they were last seen. A column whose type changed, or that came with a default, gave rows other
-- values without a trigger.
-- signature: the triggers and functions as `init` made them. Who altered them may have written meanwhile.
-- gap: why rows of the cloud may differ although nothing waits; a sync of the entity closes it.
alter table entity add column shape text, add column signature text, add column gap text, add column gap_seen timestamptz;

-- slot: its last value says which slot writers use now, modulo 4. It moves on when the replicator says so, never by
-- itself, so that nobody waits for the lock that truncating a slot needs.
create sequence slot as bigint minvalue 0 start 0 cache 1;
select setval('slot', 0);

-- One row that is updated over and over, or few: dead versions are taken away early.
alter table identity set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table checkpoint set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table entity set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table backfill set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
alter table quarantine set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
alter table media set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
alter table media_ref set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

-- put: writes one change to the outbox, in the slot that is used now. Returns the position.
create or replace function put(entity smallint, op "char", key text, image text) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    p bigint;
begin
    -- The transaction's number first: a window begins above the positions that were taken before its transactions began.
    perform pg_current_xact_id();
    p := nextval('cloud_sync.position');
    case coalesce(pg_sequence_last_value('cloud_sync.slot'), 0) & 3
        when 0 then insert into cloud_sync.outbox_0 (position, entity, op, key, image) values (p, entity, op, key, image);
        when 1 then insert into cloud_sync.outbox_1 (position, entity, op, key, image) values (p, entity, op, key, image);
        when 2 then insert into cloud_sync.outbox_2 (position, entity, op, key, image) values (p, entity, op, key, image);
        else        insert into cloud_sync.outbox_3 (position, entity, op, key, image) values (p, entity, op, key, image);
    end case;
    return p;
end $$;

-- image: as before; a column that is no bytea any more stays as it is, since a writer must never fail for it.
create or replace function image(document jsonb, excluded text[], redacted text[], binaries text[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set bytea_output = hex as $$
declare
    secrets text[];
    name    text;
    value   text;
begin
    if not document ?& excluded then
        return null;
    end if;
    if cardinality(redacted) > 0 then
        secrets := array(select document->>e from unnest(excluded) e where document->>e is not null
                         order by length(document->>e) desc);
    end if;
    document := document - excluded;
    foreach name in array redacted loop
        if jsonb_typeof(document->name) = 'string' then
            document := jsonb_set(document, array[name], to_jsonb(cloud_sync.redact(document->>name, secrets)));
        end if;
    end loop;
    foreach name in array binaries loop
        if jsonb_typeof(document->name) = 'string' then
            value := document->>name;
            if starts_with(value, '\x') and length(value) % 2 = 0 and translate(substr(value, 3), '0123456789abcdef', '') = '' then
                document := jsonb_set(document, array[name],
                    to_jsonb(translate(encode(value::bytea, 'base64'), E'\n', '')));
            end if;
        end if;
    end loop;
    return document::text;
end $$;

-- trim_slot: truncates one slot where each of its rows is visible in the snapshot and at or below the position: all of them
-- accepted by the cloud. The slot that writers use is left: see move_on. Never waits for a lock. Returns the bytes given
-- back, or null where the slot stays.
create or replace function trim_slot(slot integer, accepted pg_snapshot, upto bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    tab     text := format('cloud_sync.outbox_%s', slot);
    bytes   bigint := pg_total_relation_size(tab);
    pending boolean;
    highest bigint;
    check_  text := format('select exists (select from only %s where position > $1 or not pg_visible_in_snapshot(xid, $2))', tab);
begin
    if pg_relation_size(tab) = 0 or coalesce(pg_sequence_last_value('cloud_sync.slot'), 0) & 3 = slot then
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
drop function move_on();
create function move_on() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ bigint := coalesce(pg_sequence_last_value('cloud_sync.slot'), 0);
begin
    if pg_relation_size(format('cloud_sync.outbox_%s', now_ & 3)) = 0
        or pg_relation_size(format('cloud_sync.outbox_%s', (now_ + 1) & 3)) > 0 then
        return false;
    end if;
    perform nextval('cloud_sync.slot');
    return true;
end $$;

-- note_shape: remembers the columns of an entity's table, and marks a gap where rows have other values than those that were
-- captured: a column was renamed, changed its type, or came with a default. Returns whether it did.
create function note_shape(entity_id smallint, relation oid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    before jsonb;
    after_ jsonb;
    missed boolean;
begin
    select shape::jsonb into before from cloud_sync.entity where id = entity_id for update;
    select coalesce(jsonb_object_agg(a.attnum, jsonb_build_array(a.attname, a.atttypid::bigint, a.atttypmod,
               a.atthasmissing or a.atthasdef or a.attidentity <> '' or t.typdefault is not null)), '{}')
        into after_
        from pg_attribute a join pg_type t on t.oid = a.atttypid
        where a.attrelid = relation and a.attnum > 0 and not a.attisdropped;
    if before is not distinct from after_ then
        return false;
    end if;
    missed := before is not null and exists (
        select from jsonb_each(after_) a left join jsonb_each(before) b on b.key = a.key
        where case when b.key is null then (a.value->>3)::boolean else a.value - 3 <> b.value - 3 end);
    update cloud_sync.entity e set shape = after_::text,
        gap = case when missed then 'a column was renamed, changed its type, or came with a default' else e.gap end,
        gap_seen = case when missed then clock_timestamp() else e.gap_seen end
        where e.id = entity_id;
    return missed;
end $$;

-- signature: the triggers and functions of an entity's capture, and the transaction that made each what it is.
create function signature(entity_id smallint) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select string_agg(part, ',' order by part) from (
        select p.oid || '.' || p.xmin as part from pg_proc p
        where p.pronamespace = 'cloud_sync'::regnamespace and p.proname ~ format('^capture_%s_[a-z]+$', entity_id)
        union all
        select t.oid || '.' || t.tgrelid || '.' || t.xmin from pg_trigger t join pg_proc p on p.oid = t.tgfoid
        where p.pronamespace = 'cloud_sync'::regnamespace and p.proname ~ format('^capture_%s_[a-z]+$', entity_id)
    ) parts;
$$;
