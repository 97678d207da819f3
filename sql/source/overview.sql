-- What the page shows of the site's database besides the status.

-- name: waiting_by_entity
-- How many changes of each entity the cloud has not accepted, those included that are kept since it is parked. The
-- parameters are those of the outbox's lag.
select e.name, count(*)
from (
    select o.entity from cloud_sync.outbox o
    where o.position > $4
      and not pg_visible_in_snapshot(o.xid, $1::text::pg_snapshot)
      and not (o.position <= $3 and pg_visible_in_snapshot(o.xid, $2::text::pg_snapshot))
    union all
    select k.entity from cloud_sync.parked_key k) w
join cloud_sync.entity e on e.id = w.entity
group by e.name

-- name: last_files
-- Of each of the states $1 the files that came last, at most $2 of each: those that are uploaded by their upload,
-- others by when a row named them.
select s.state, f.path, f.size, f.reason, f.attempts, f.next_attempt_seconds
from unnest($1::text[]) s (state)
cross join lateral (
    select path, coalesce(seen_size, size) as size, error as reason, attempts,
           case when state in ('waiting', 'failing')
                then greatest(extract(epoch from next_attempt - now()), 0)::float8 end as next_attempt_seconds
    from cloud_sync.media m
    where m.state = s.state
    order by greatest(named_at, uploaded_at) desc, path
    limit $2::bigint) f

-- name: longest_missing
-- Seconds since a row named the file that is missing the longest.
select extract(epoch from now() - min(named_at))::float8 from cloud_sync.media where state = 'missing'
