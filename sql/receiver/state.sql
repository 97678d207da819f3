-- What must be known of each entity that a batch names. $1 site, $2 names of entities.
-- Returns entity, version of its table, whether it has tombstones, epoch and version of its truncate mark.
select
    s.entity,
    e.version as table_version,
    exists (select from cloud_meta.tombstones d where d.site = $1 and d.entity = s.entity) as buried,
    m.epoch,
    m.version
from cloud_meta.schemas s
join cloud_meta.entities e using (entity)
left join cloud_meta.truncate_marks m on m.site = s.site and m.entity = s.entity
where s.site = $1 and s.entity = any($2)
