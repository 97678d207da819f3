-- How far each source of a site ($1) has come in its newest epoch; the source '' stands for baseline requests.
select distinct on (source_id)
    source_id,
    epoch,
    position,
    to_char(max(updated_at) over () at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as last_sync
from cloud_meta.sources
where site = $1
order by source_id, epoch desc
