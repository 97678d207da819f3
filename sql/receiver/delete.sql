-- Deletes rows, each unless the table holds a newer state of it, and leaves a tombstone for each row that there was.
-- A tombstone that is there already gets the batch's version. A delete without row and tombstone does nothing.
-- $1 site, $2 entity, $3 epoch, $4 version, $5… one array a key column. {open} and {close} wrap it for the history.
-- {known} and {within}: see known.sql.
-- A row of the batch's own version stays: an upsert of the same batch wrote it, and of equal keys the upsert counts.
-- Lookups by row and deletes by place: see upsert_guard.sql.
-- Affects one row for each change that was applied. Writes the entity's table and cloud_meta.tombstones.
with {known}incoming as (
    select {expressions}
    from (select {arrays}) as r{within}
), found as (
    select {key_text} as key, t.place
    from incoming i
    left join lateral (
        select t.ctid as place, t."_epoch" as epoch, t."_version" as version
        from {table} t
        where t."_site" = $1 and {same_key}
        offset 0
    ) t on true
    left join lateral (
        select true as there
        from cloud_meta.tombstones d
        where t.place is null and d.site = $1 and d.entity = $2 and d.key = {key_text}
        offset 0
    ) d on true
    where d.there or (t.epoch, t.version) < ($3, $4)
), gone as (
    delete from {table} t
    where t.ctid = any(array(select place from found where place is not null))
){open}
insert into cloud_meta.tombstones as t (site, entity, key, epoch, version)
select $1, $2, f.key, $3, $4
from found f
on conflict (site, entity, key) do update
set epoch = excluded.epoch, version = excluded.version
where (t.epoch, t.version) <= (excluded.epoch, excluded.version){close}
