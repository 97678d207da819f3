-- How far the backfill of each entity has come.

-- name: read
-- $1 the entity   $2 the days that it covers, null for all
select relid, filenode, page, pushed, finished_at is not null
from cloud_sync.backfill
where entity = $1 and days is not distinct from $2

-- name: keep
-- $1 the entity   $2 days   $3 the table's oid   $4 its file   $5 the page   $6 rows pushed   $7 whether it
-- is finished
insert into cloud_sync.backfill as b (entity, days, relid, filenode, page, pushed, finished_at)
values ($1, $2, $3, $4, $5, $6, case when $7 then now() end)
on conflict (entity) do update
set days = excluded.days, relid = excluded.relid, filenode = excluded.filenode, page = excluded.page,
    pushed = excluded.pushed, finished_at = excluded.finished_at,
    started_at = case when b.days is distinct from excluded.days then now() else b.started_at end
