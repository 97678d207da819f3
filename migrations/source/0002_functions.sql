-- Functions that the capture triggers and the replicator call. All pin their search_path.

-- put: writes one change to the outbox, in the slot of its position. Returns the position. Used for rows that are
-- captured anew; the triggers write set-wise.
create function put(entity smallint, op "char", key text, image text) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    p bigint;
begin
    -- The transaction's number first: a window begins above the positions that were taken before its transactions began.
    perform pg_current_xact_id();
    p := nextval('cloud_sync.position');
    case (p >> 16) & 3
        when 0 then insert into cloud_sync.outbox_0 (position, entity, op, key, image) values (p, entity, op, key, image);
        when 1 then insert into cloud_sync.outbox_1 (position, entity, op, key, image) values (p, entity, op, key, image);
        when 2 then insert into cloud_sync.outbox_2 (position, entity, op, key, image) values (p, entity, op, key, image);
        else        insert into cloud_sync.outbox_3 (position, entity, op, key, image) values (p, entity, op, key, image);
    end case;
    return p;
end $$;

-- redact: a text without URL credentials (user:password@, and query parameters that carry them) and without any of
-- the secrets.
create function redact(value text, secrets text[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    secret text;
begin
    value := regexp_replace(value, '://[^/?#\s]*@', '://', 'g');
    value := regexp_replace(value,
        '([?&;](?:user|usr|username|login|account|pass|passwd|password|pwd|psw|auth|token|key|secret)[a-z_]*=)[^&;#\s]*',
        '\1', 'gi');
    foreach secret in array secrets loop
        if secret <> '' then
            value := replace(value, secret, '');
        end if;
    end loop;
    return value;
end $$;

-- image: a row's JSON without its excluded columns, with its redacted columns redacted and its bytea columns in base64.
-- Returns null, the image withheld, where an excluded column is not there: it may have been renamed, and what it held
-- must not leave the site under another name.
create function image(document jsonb, excluded text[], redacted text[], binaries text[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set bytea_output = hex as $$
declare
    secrets text[];
    name    text;
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
            document := jsonb_set(document, array[name],
                to_jsonb(translate(encode((document->>name)::bytea, 'base64'), E'\n', '')));
        end if;
    end loop;
    return document::text;
end $$;

-- trim_slot: truncates one slot where each of its rows is visible in the snapshot and at or below the position: all of them
-- accepted by the cloud. Never waits for a lock, and never keeps writers waiting for a long check: a large slot that
-- writers are using now is left until they have moved on. Returns the bytes given back, or null where the slot stays.
create function trim_slot(slot integer, accepted pg_snapshot, upto bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    tab     text := format('cloud_sync.outbox_%s', slot);
    bytes   bigint := pg_total_relation_size(tab);
    used    boolean;
    pending boolean;
    highest bigint;
    check_  text := format('select exists (select from only %s where position > $1 or not pg_visible_in_snapshot(xid, $2))', tab);
begin
    if pg_relation_size(tab) = 0 then
        return null;
    end if;
    select (last_value >> 16) & 3 = slot into used from cloud_sync.position;
    if used and bytes > 64 * 1024 * 1024 then
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

-- move_on: draws positions until the next slot begins, so that a large slot which writers use can be trimmed although
-- few write. Gaps between positions mean nothing.
create function move_on() returns void
language sql set search_path = pg_catalog, pg_temp as $$
    select count(nextval('cloud_sync.position'))
    from generate_series(1, (select 65536 - (last_value & 65535) from cloud_sync.position));
$$;
