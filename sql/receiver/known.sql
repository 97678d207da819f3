-- Part of upsert.sql and delete.sql where a request is applied by one statement: what state.sql asks otherwise, and the
-- note of how far the source has come. Nothing is written where the entity's table has become another version.
-- {version} the version, {source} source id, {highest} highest position of the request.
-- Writes cloud_meta.sources.
known as materialized (
    select e.version = {version} as fits, m.epoch, m.position
    from cloud_meta.schemas s
    join cloud_meta.entities e using (entity)
    left join cloud_meta.truncate_marks m on m.site = s.site and m.entity = s.entity
    where s.site = $1 and s.entity = $3
), noted as (
    insert into cloud_meta.sources as s (site, source_id, epoch, position)
    select $1, {source}, $2, {highest}
    from known
    where fits
    on conflict (site, source_id, epoch) do update
    set position = greatest(s.position, excluded.position), updated_at = now()
), 
