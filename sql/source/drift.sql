-- Whether capture is as `init` made it, and gaps: changes that may have been missed.

-- name: members
-- The tables $1 of entities and their partitions at every level, with our triggers on each and the letter of
-- their state: name in SQL; kind; triggers; whether it is the entity's own table; the oid of that.
select format('%I.%I', n.nspname, c.relname), c.relkind::text,
       array(
           select t.tgname || ' ' || t.tgenabled::text from pg_trigger t
           where t.tgrelid = c.oid and t.tgname like 'cloud\_sync\_%'),
       c.oid = tree.root as is_root, tree.root
from (
    select w.oid as root, w.oid as relid from unnest($1::oid[]) w(oid)
    union select w.oid, p.relid from unnest($1::oid[]) w(oid), pg_partition_tree(w.oid::regclass) p) tree
join pg_class c on c.oid = tree.relid
join pg_namespace n on n.oid = c.relnamespace
order by is_root desc, 1

-- name: triggered
-- The tables that have triggers of the entities $1, which are numbers: the entity; the table; such a trigger.
-- A trigger's function is found by its dependency, which has an index.
with functions as materialized (
    select p.oid, substring(p.proname::text from '^capture_([0-9]{1,5})_[a-z]+$')::int as entity from pg_proc p
    where p.pronamespace = 'cloud_sync'::regnamespace and p.proname ~ '^capture_[0-9]{1,5}_[a-z]+$')
select f.entity::smallint, format('%I.%I', n.nspname, c.relname) as name, format('%I', t.tgname)
from functions f
join pg_depend d on d.refclassid = 'pg_proc'::regclass and d.refobjid = f.oid and d.classid = 'pg_trigger'::regclass
join pg_trigger t on t.oid = d.objid
join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
where f.entity = any($1::smallint[]) and t.tgparentid = 0
order by name

-- name: captured
-- What is kept of the capture of the entities $1, which are names, and whether their triggers and functions are
-- those that were installed. The triggers of a table that was dropped went with it: that does not mean that
-- someone altered them.
select e.id, e.relid, e.definition, e.detached_at is not null,
       not exists (
           select from unnest(string_to_array(e.signature, ',')) installed (part)
               full join unnest(string_to_array(cloud_sync.signature(e.id), ',')) present (part)
                   on present.part = installed.part
           where installed.part is null or (present.part is null
               and (installed.part !~ '^[0-9]+[.][0-9]+[.]' or exists (
                   select from pg_class c where c.oid::text = split_part(installed.part, '.', 2))))),
       e.gap, e.gap_seen::text, e.selection, e.parked, e.name
from cloud_sync.entity e where e.name = any($1)

-- name: note_shape
-- $1 the entities' numbers   $2 the oids of their tables. Returns whether it marked a gap of one.
select coalesce(bool_or(cloud_sync.note_shape(w.id, w.oid)), false)
from (select * from unnest($1::smallint[], $2::oid[]) u(id, oid) order by id) w

-- name: mark
-- $1 the entity's number   $2 the gap
update cloud_sync.entity set gap = $2, gap_seen = clock_timestamp() where id = $1

-- name: mark_all
-- $1 the gap
update cloud_sync.entity set gap = $1, gap_seen = clock_timestamp() where detached_at is null

-- name: mark_unlogged
-- Marks a gap of every entity that has rows in an unlogged table. $1 the gap
update cloud_sync.entity e set gap = $1, gap_seen = clock_timestamp()
where e.detached_at is null and exists (
    select from pg_class c
    where c.relpersistence = 'u'
      and (c.oid = e.relid or c.oid in (select relid from pg_partition_tree(e.relid::regclass) p)))

-- name: close
-- Closes a gap, unless it was seen again. $1 the entity's name   $2 when the gap was seen
update cloud_sync.entity set gap = null, gap_seen = null where name = $1 and gap_seen::text = $2
