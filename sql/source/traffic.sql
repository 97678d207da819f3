-- How many bytes left the site on which day, while there is a budget.

-- name: note
-- Adds what left. $1 days, as texts   $2 bytes
insert into cloud_sync.traffic as t (day, bytes)
select day::date, bytes from unnest($1::text[], $2::bigint[]) n (day, bytes) order by 1
on conflict (day) do update set bytes = t.bytes + excluded.bytes

-- name: read
-- What left on the day $1, and in its month.
select coalesce(sum(bytes) filter (where day = $1::text::date), 0)::bigint, coalesce(sum(bytes), 0)::bigint
from cloud_sync.traffic
where day between date_trunc('month', $1::text::date)::date and $1::text::date

-- name: forget
-- Forgets what left long before the day $1.
delete from cloud_sync.traffic where day < $1::text::date - 400
