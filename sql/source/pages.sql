-- Whole tables of the site, page by page of the server's files.

-- name: leaves
-- The tables that hold the rows of table $1: oid, file, pages, name.
select c.oid, coalesce(pg_relation_filenode(c.oid), 0::oid),
       (pg_relation_size(c.oid) / current_setting('block_size')::bigint)::bigint,
       format('%I.%I', n.nspname, c.relname)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and (c.oid = $1 or c.oid in (select relid from pg_partition_tree($1::oid::regclass) p))
order by c.oid

-- name: count
-- {within} the condition on age
select count(*) from {table} t where {within}

-- part: younger
-- The condition that a row is younger than so many {days} by {column}.
t.{column} >= pg_catalog.now() - interval '{days} days'

-- name: page
-- The rows of the pages from {from} up to {upto}. {list} what is read of each, {within} the condition on age
select {list}
from only {table} t
where t.ctid >= '({from},0)'::pg_catalog.tid and t.ctid < '({upto},0)'::pg_catalog.tid and {within}
