-- The receiver's identity, and the newest batch of each source of a site ($1). It is at least one row: if the
-- site has no source, the identity comes with a null source. The source '' is that of baseline requests.
select
    r.receiver_id::text as receiver,
    s.source_id,
    s.epoch,
    s.term,
    s.batch,
    s.database,
    to_char(max(s.updated_at) over () at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as last_sync
from cloud_meta.receiver r
left join cloud_meta.sources s on s.site = $1
order by s.source_id
