-- What a request must know of each entity that it names, and the note of how far its source has come.
-- $1 site, $2 source id, $3 epoch, $4 highest position of the request, $5 entity names.
-- Answers entity, version, whether it has tombstones, epoch and position of its truncate mark.
-- Writes cloud_meta.sources.
with noted as (
    insert into cloud_meta.sources as s (site, source_id, epoch, position)
    values ($1, $2, $3, $4)
    on conflict (site, source_id, epoch) do update
    set position = greatest(s.position, excluded.position), updated_at = now()
)
select
    s.entity,
    e.version,
    exists (select from cloud_meta.tombstones d where d.site = $1 and d.entity = s.entity) as buried,
    m.epoch,
    m.position
from cloud_meta.schemas s
join cloud_meta.entities e using (entity)
left join cloud_meta.truncate_marks m on m.site = s.site and m.entity = s.entity
where s.site = $1 and s.entity = any($5)
