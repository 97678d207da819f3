-- What the tables of the catalogue look like, and what refers to what.

-- part: named_table
-- The oid of the table of this name, which may say its schema, else is looked for where the site looks for
-- its tables; null if there is none. {name} a text
coalesce(to_regclass({name}), case when cardinality(parse_ident({name})) = 1 then (
    select to_regclass(format('%I.%s', s.name, {name}))
    from unnest(current_setting('cloud_sync.schemas', true)::name[]) with ordinality s(name, place)
    where to_regclass(format('%I.%s', s.name, {name})) is not null
    order by s.place limit 1) end)

-- name: find
-- The tables of the names $1: the name's place, from 1; the table's oid; its name in SQL; its kind; whether it is
-- a partition; a table that inherits from it although it is not partitioned. {named_table} of w.name
select w.nth, c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relispartition,
       case when c.relkind = 'r' then (
           select min(inhrelid)::regclass::text from pg_inherits where inhparent = c.oid) end
from unnest($1::text[]) with ordinality w(name, nth)
join pg_class c on c.oid = {named_table}
join pg_namespace n on n.oid = c.relnamespace

-- name: find_captured
-- The same of the tables that the triggers of the entities $1 are on.
select w.nth, c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relispartition,
       case when c.relkind = 'r' then (
           select min(inhrelid)::regclass::text from pg_inherits where inhparent = c.oid) end
from unnest($1::text[]) with ordinality w(name, nth)
join cloud_sync.entity e on e.name = w.name and e.detached_at is null
join pg_class c on c.oid = e.relid
join pg_namespace n on n.oid = c.relnamespace

-- name: columns
-- The columns of the tables $1: name; base type's canonical name; own type and base type, written out; whether
-- it may be null; type of the base type, of its element if it is an array; schema; oids of both; the table.
with recursive base as (
    select a.attrelid, a.attnum, a.attname, a.attnotnull, a.atttypid as original, a.atttypid as typid
    from pg_attribute a where a.attrelid = any($1) and a.attnum > 0 and not a.attisdropped
    union all
    select b.attrelid, b.attnum, b.attname, b.attnotnull or t.typnotnull, b.original, t.typbasetype
    from base b join pg_type t on t.oid = b.typid where t.typtype = 'd'
)
select b.attname::text, format_type(b.typid, null), format_type(b.original, -1), format_type(b.typid, -1),
       not b.attnotnull, t.typtype::text, coalesce(e.typtype::text, ''), n.nspname::text, b.typid,
       coalesce(e.oid, 0::oid), b.attrelid
from base b
join pg_type t on t.oid = b.typid
join pg_namespace n on n.oid = t.typnamespace
left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
where t.typtype <> 'd' order by b.attrelid, b.attnum

-- name: unique_keys
-- Each key column of each unique index of the tables $1: the index, whether it is the primary key, the column,
-- its equality operator, its collation if that has another version now, whether it is the database's default one
-- (its oid is 100) and the server tells that one's version; the table.
select i.indexrelid, i.indisprimary, a.attname::text,
       (select format('operator(%I.%s)', n.nspname, o.oprname) from pg_opclass c
        join pg_amop m on m.amopfamily = c.opcfamily
            and m.amopstrategy = 3 and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
        join pg_operator o on o.oid = m.amopopr
        join pg_namespace n on n.oid = o.oprnamespace where c.oid = k.opclass),
       (select c.collname::text from pg_collation c where c.oid = k.coll and c.collversion is distinct from
            pg_collation_actual_version(c.oid) and c.collversion is not null),
       k.coll = 100 and current_setting('server_version_num')::int >= 150000, i.indrelid
from pg_index i
cross join unnest(i.indkey::smallint[], i.indclass::oid[], i.indcollation::oid[])
    with ordinality k(attnum, opclass, coll, nth)
join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
where i.indrelid = any($1) and i.indisunique and i.indpred is null and i.indexprs is null and i.indisvalid
  and k.nth <= i.indnkeyatts
order by i.indrelid, not i.indisprimary, i.indexrelid, k.nth

-- name: stale_default_collation
-- The name of the database's default collation, if that has another version now. Since PostgreSQL 15.
select format('default of database %I', datname) from pg_database
where datname = current_database() and datcollversion <> pg_database_collation_actual_version(oid)

-- name: fingerprint
-- A number for the tables $1, and the oid of the table that has each of the names $2 now. A value of a column
-- can change without a touch only by what changes its row in the catalog, which `xmin` tells. {named_table}
-- of n.name
select coalesce((
           select bit_xor(hashtextextended(
               attrelid || '.' || attnum || '.' || attname || '.' || atttypid || '.'
                   || atttypmod || '.' || attnotnull || '.' || xmin, 0))
           from pg_attribute where attrelid = any($1) and attnum > 0 and not attisdropped), 0)
       # case when exists (select from pg_class where oid = any($1) and relkind = 'p') then coalesce((
           with recursive tree (member) as (
               select inhrelid from pg_inherits where inhparent = any($1)
               union all select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.member)
           select bit_xor(hashtextextended('partition ' || member, 0)) from tree), 0) else 0 end,
       array(select {named_table}::oid from unnest($2::text[]) with ordinality n(name, nth) order by n.nth)

-- name: all
-- Each table of the site that can be an entity's: its oid; schema; name; the columns of its primary key, or
-- else of its shortest unique key without nulls; all its columns; the extension that it belongs to.
select c.oid, n.nspname::text, c.relname::text,
       coalesce((
           select array(
               select a.attname::text from unnest(i.indkey::smallint[]) with ordinality k(attnum, nth)
               join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
               where k.nth <= i.indnkeyatts order by k.nth)
           from pg_index i
           where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null
             and i.indexprs is null and not exists (
                 select from unnest(i.indkey::smallint[]) with ordinality k(attnum, nth)
                 join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
                 where k.nth <= i.indnkeyatts and not a.attnotnull)
           order by not i.indisprimary, i.indnkeyatts, i.indexrelid limit 1), '{}'),
       array(
           select a.attname::text from pg_attribute a
           where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum),
       (select e.extname::text from pg_depend d join pg_extension e on e.oid = d.refobjid
        where d.classid = 'pg_class'::regclass and d.objid = c.oid
          and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e' limit 1)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
  and n.nspname <> all(array['information_schema', 'cloud_sync']) and n.nspname !~ '^pg_'
order by n.nspname, c.relname

-- name: survey
-- Of each of the tables $1: its oid; owner; about how many rows it has; its bytes with its indexes; its columns
-- of dates and times; its columns of text and JSON;
-- whether its owner is a superuser.
select c.oid, pg_get_userbyid(c.relowner)::text,
       (select coalesce(sum(greatest(m.reltuples, 0)), 0)::bigint from pg_class m
        where m.oid = c.oid or m.oid in (select relid from pg_partition_tree(c.oid))),
       (select coalesce(sum(pg_total_relation_size(m.oid)), 0)::bigint from pg_class m
        where m.oid = c.oid or m.oid in (select relid from pg_partition_tree(c.oid))),
       array(
           select a.attname::text from pg_attribute a
           where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
             and a.atttypid = any(array['timestamptz', 'timestamp', 'date']::regtype[]) order by a.attnum),
       array(
           select a.attname::text from pg_attribute a join pg_type t on t.oid = a.atttypid
           where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
             and (t.typcategory = 'S' or t.oid = any(array['json', 'jsonb']::regtype[])) order by a.attnum),
       (select rolsuper from pg_roles where oid = c.relowner)
from pg_class c where c.oid = any($1)

-- name: references
-- The pairs of tables among $1 where the first refers to the second: whether each such foreign key has a
-- column that may be null, or else is deferrable.
select conrelid, confrelid, bool_and(condeferrable or exists (
           select from unnest(conkey) k(attnum)
           join pg_attribute a on a.attrelid = conrelid and a.attnum = k.attnum
           where not a.attnotnull))
from pg_constraint
where contype = 'f' and conrelid <> confrelid and conrelid = any($1) and confrelid = any($1)
group by conrelid, confrelid

-- name: captured_names
-- The names of the entities that are captured.
select name from cloud_sync.entity where detached_at is null

-- name: policies
-- Those of the tables $1 to whose rows, or to whose partitions' rows, row-level security of our role applies: the
-- table's oid, our role, the table or partition.
select t.root, current_user::text, min(t.relid::regclass::text)
from (
    select w.oid as root, w.oid as relid from unnest($1::oid[]) w(oid)
    union select w.oid, p.relid from unnest($1::oid[]) w(oid), pg_partition_tree(w.oid::regclass) p) t
where row_security_active(t.relid) group by t.root
