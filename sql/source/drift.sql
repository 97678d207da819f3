-- Whether capture is as `init` made it, and gaps: changes that may have been missed.

-- name: members
-- The entity's table and its partitions at every level, with our triggers on each and the letter of their
-- state.
-- $1 the oid of the entity's table
select format('%I.%I', n.nspname, c.relname), c.relkind::text,
       array(
           select t.tgname || ' ' || t.tgenabled::text from pg_trigger t
           where t.tgrelid = c.oid and t.tgname like 'cloud\_sync\_%'),
       c.oid = $1 as root
from (select $1::oid as relid union select relid from pg_partition_tree($1::oid::regclass) p) tree
join pg_class c on c.oid = tree.relid
join pg_namespace n on n.oid = c.relnamespace
order by root desc, 1

-- name: strangers
-- Tables that have triggers of the entity and are none of $2, each with such a trigger. $1 the entity's
-- number
select format('%I.%I', n.nspname, c.relname) as name, format('%I', t.tgname)
from pg_trigger t
join pg_proc p on p.oid = t.tgfoid
join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
where p.pronamespace = 'cloud_sync'::regnamespace and p.proname ~ format('^capture_%s_[a-z]+$', $1::smallint)
  and t.tgparentid = 0 and format('%I.%I', n.nspname, c.relname) <> all ($2)
order by name

-- name: captured
-- What is kept of an entity's capture, and whether its triggers and functions are those that were installed.
-- The triggers of a table that was dropped went with it: that does not mean that someone altered them. $1 the
-- entity's name
select e.id, e.relid, e.definition, e.detached_at is not null,
       not exists (
           select from unnest(string_to_array(e.signature, ',')) installed (part)
               full join unnest(string_to_array(cloud_sync.signature(e.id), ',')) present (part)
                   on present.part = installed.part
           where installed.part is null or (present.part is null
               and (installed.part !~ '^[0-9]+[.][0-9]+[.]' or exists (
                   select from pg_class c where c.oid::text = split_part(installed.part, '.', 2))))),
       e.gap, e.gap_seen::text, e.selection, e.parked
from cloud_sync.entity e where e.name = $1

-- name: note_shape
-- $1 the entity's number   $2 the oid of its table. Returns whether it marked a gap.
select cloud_sync.note_shape($1, $2)

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
