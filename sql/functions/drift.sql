-- Whether capture is still as `init` made it, and the columns as they were last seen.

-- note_shape: remembers the columns of an entity's table. It marks a gap if rows may have other values than
-- those that were sent, without a touch: a column was renamed, changed its type or was computed again, or was
-- added with a default; a label of an enum was renamed; a composite type has other attributes. Each change of
-- a column changes xmin of the column's row in the catalog, also a change that keeps name and type; VACUUM
-- FULL, CLUSTER and TRUNCATE, which change no value, do not. Of a partitioned table it remembers the
-- partitions at every level too: a partition that was detached or dropped took its rows with it, without a
-- touch. Returns whether it marked a gap.
create or replace function cloud_sync.note_shape(entity_id smallint, relation oid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    before jsonb;
    after_ jsonb;
    missed boolean;
    parted boolean;
begin
    select shape::jsonb into before from cloud_sync.entity where id = entity_id for update;
    select coalesce(jsonb_object_agg(a.attnum, jsonb_build_object(
               'is', jsonb_build_array(a.attname, a.atttypid::bigint, a.atttypmod, a.xmin::text,
                   (select d.xmin::text from pg_attrdef d
                    where d.adrelid = a.attrelid and d.adnum = a.attnum and a.attgenerated <> '')),
               'filled', a.atthasmissing or a.atthasdef or a.attidentity <> '' or t.typdefault is not null,
               'labels', (select coalesce(jsonb_object_agg(e.oid, e.enumlabel), '{}') from pg_enum e
                   where e.enumtypid in (t.oid, t.typelem, t.typbasetype)),
               'attributes', (select coalesce(jsonb_agg(
                       jsonb_build_array(c.attnum, c.atttypid::bigint, c.xmin::text) order by c.attnum), '[]')
                   from pg_type p
                   join pg_attribute c on c.attrelid = p.typrelid and c.attnum > 0 and not c.attisdropped
                   where p.oid in (t.oid, t.typelem, t.typbasetype) and p.typtype = 'c'))), '{}')
        into after_
        from pg_attribute a join pg_type t on t.oid = a.atttypid
        where a.attrelid = relation and a.attnum > 0 and not a.attisdropped;
    after_ := after_ || jsonb_build_object('partitions', (
        with recursive tree (member) as (
            select i.inhrelid from pg_inherits i where i.inhparent = relation
            union all select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.member)
        select coalesce(jsonb_agg(member::bigint order by member), '[]') from tree));
    if before is not distinct from after_ then
        return false;
    end if;
    -- Null if an earlier version has not noted them.
    parted := coalesce(not (after_->'partitions') @> (before->'partitions'), false);
    missed := before is not null and exists (
        select from jsonb_each(after_ - 'partitions') a left join jsonb_each(before) b on b.key = a.key
        where case when b.key is null then (a.value->>'filled')::boolean
              else a.value->'is' <> b.value->'is' or a.value->'attributes' <> b.value->'attributes'
                   -- A label that was added changes no row.
                   or not (a.value->'labels') @> (b.value->'labels') end);
    update cloud_sync.entity e set shape = after_::text,
        gap = case when missed then 'a column or its type has changed'
                   when parted then 'a partition left the table, and its rows with it' else e.gap end,
        gap_seen = case when missed or parted then clock_timestamp() else e.gap_seen end
        where e.id = entity_id;
    return missed or parted;
end $$;

-- signature: the triggers and functions of an entity's capture, and the transaction that changed each last.
-- Triggers that PostgreSQL has cloned to partitions come and go with these. A trigger's function is found by its
-- dependency, which has an index.
create or replace function cloud_sync.signature(entity_id smallint) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    with functions as materialized (
        select p.oid, p.xmin from pg_proc p
        where p.proname >= format('capture_%s_', entity_id)::name
          and p.proname < format('capture_%s`', entity_id)::name
          and p.pronamespace = 'cloud_sync'::regnamespace
          and p.proname ~ format('^capture_%s_[a-z]+$', entity_id))
    select string_agg(part, ',' order by part) from (
        select p.oid || '.' || p.xmin as part from functions p
        union all
        select t.oid || '.' || t.tgrelid || '.' || t.xmin
        from functions p
        join pg_depend d on d.refclassid = 'pg_proc'::regclass and d.refobjid = p.oid
            and d.classid = 'pg_trigger'::regclass
        join pg_trigger t on t.oid = d.objid
        where t.tgparentid = 0
    ) parts;
$$;
