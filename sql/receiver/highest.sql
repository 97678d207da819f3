-- The highest key of a site's ($1) entity from $2 to $3, by the first key column: what lies above it is new.
select t.{key}::bigint
from {table} t
where t."_site" = $1 and t.{key} between $2 and $3
order by t.{key} desc
limit 1
