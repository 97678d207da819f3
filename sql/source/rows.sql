-- The present state of touched rows: of one entity by one statement. {list} is what is read of each row.

-- name: by_number
-- By an integer key: $1 the keys. {key} the key column, {equals} its equality operator
select k.cs_nth, t.tableoid, {list}
from unnest($1::pg_catalog.int8[]) with ordinality k(cs_key, cs_nth)
left join {table} t on t.{key} {equals} k.cs_key

-- name: by_range
-- By an integer key from $1 to $2. {key} the key column
select t.{key}::pg_catalog.int8, t.tableoid, {list}
from {table} t
where t.{key} operator(pg_catalog.>=) $1::pg_catalog.int8
  and t.{key} operator(pg_catalog.<=) $2::pg_catalog.int8

-- name: by_text
-- By keys of any types: one array of texts a key column. {arrays} their unnesting, {keys} the keys as read
-- back, {same} their comparison with the row's
select k.cs_nth, t.tableoid, {keys}, {list}
from (select {arrays}, pg_catalog.generate_subscripts($1, 1)::pg_catalog.int8 cs_nth) k
left join {table} t on {same}
