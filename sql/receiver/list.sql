-- The living rows of a site's entity as JSON texts. $1 site; $2 days, if {window} is a condition on the age
-- of a row.
-- `r.*`, as an entity may have a column r.
select row_to_json(r.*)::text
from (select {columns} from {table} t where t."_site" = $1{window}) r
