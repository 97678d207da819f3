-- The condition of an entity (`where`): parsed by the site's search path, never run.

-- name: may_create_tables
-- Whether this role may create a temporary table.
select has_database_privilege(current_database(), 'temporary')

-- name: begin
-- An empty table of the same columns, by the name that the condition sees when rows are read, and the site's
-- search path.
begin;
create temporary table t (like {table});
select set_config('search_path',
    concat_ws(', ', 'pg_catalog', nullif(current_setting('cloud_sync.path', true), '')), true)

-- name: parse
-- Has the condition parsed. Not more than one statement: the site's schemas parse nothing but this.
alter table pg_temp.t add constraint cloud_sync_condition check ({condition}) not valid

-- name: pin_path
set local search_path = pg_catalog, pg_temp

-- name: parsed
-- The parsed condition of table $1, and the first operator, function or domain in it that is neither
-- PostgreSQL's nor of a role that could do what it likes with the table anyway.
select pg_get_expr(c.conbin, c.conrelid), (
    select pg_describe_object(d.refclassid, d.refobjid, 0) || ' of role ' || owner.rolname
    from pg_depend d
    left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
    left join pg_proc p on p.oid = o.oprcode or d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid
    left join pg_type y on d.refclassid = 'pg_type'::regclass and y.oid = d.refobjid and y.typtype = 'd'
        and y.oid not in (select atttypid from pg_attribute where attrelid = $1)
    join pg_roles owner on owner.oid in (o.oprowner, p.proowner, y.typowner)
    where d.classid = 'pg_constraint'::regclass and d.objid = c.oid and not owner.rolsuper
        and owner.rolname <> current_user
        and owner.oid not in (select relowner from pg_class where oid = $1
            union all select datdba from pg_database where datname = current_database())
    limit 1)
from pg_constraint c where c.conrelid = 'pg_temp.t'::regclass and c.conname = 'cloud_sync_condition'

-- name: must_be_immutable
-- Fails if PostgreSQL does not take the condition for immutable.
create index on pg_temp.t ((1)) where ({condition})
