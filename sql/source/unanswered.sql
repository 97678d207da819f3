-- Rows whose request got no answer, until it can no longer arrive.

-- name: note
-- $1 the drain's term   $2 entities   $3 keys   $4 seconds until the request can no longer arrive
with mine as materialized (select cloud_sync.hold_term($1)),
before as (
    delete from cloud_sync.unanswered u using mine, unnest($2::text[], $3::text[]) n (entity, key)
    where u.entity = n.entity and u.key = n.key)
insert into cloud_sync.unanswered (entity, key, due)
select distinct entity, key, now() + make_interval(secs => $4)
from mine, unnest($2::text[], $3::text[]) n (entity, key)

-- name: overdue
-- At most $1 rows.
select distinct entity, key from cloud_sync.unanswered where due <= now() limit $1

-- name: next_due
-- Seconds until the next one is due.
select extract(epoch from min(due) - now())::float8 from cloud_sync.unanswered

-- name: forget
-- $1 entities   $2 keys
delete from cloud_sync.unanswered u using unnest($1::text[], $2::text[]) n (entity, key)
where u.entity = n.entity and u.key = n.key and u.due <= now()
