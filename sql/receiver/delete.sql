-- Deletes rows, each unless the table holds a newer state of it, and leaves a tombstone for each row that it
-- deleted.
-- A tombstone that exists gets the batch's version. A delete of a key without row and tombstone does nothing.
-- $1 site, $2 entity, $3 epoch, $4 version, $5… one array a key column. {open} and {close} wrap it for the
-- history.
-- {known} and {within}: see known.sql.
-- A row of the batch's own version stays: an upsert of the same batch wrote it, and of equal keys the upsert
-- counts.
-- Why rows are looked up one by one and deleted by ctid: see upsert_guard.sql.
-- Affects one row for each change that was applied.
-- Writes the entity's table and cloud_meta.tombstones.
with {known}incoming as (
    select {expressions}
    from (select {arrays}) as r{within}
), found as (
    select {key_text} as key, t.row_ctid
    from incoming i
    left join lateral (
        select t.ctid as row_ctid, t."_epoch" as epoch, t."_version" as version
        from {table} t
        where t."_site" = $1 and {same_key}
        offset 0
    ) t on true
    left join lateral (
        select true as there
        from cloud_meta.tombstones d
        where t.row_ctid is null and d.site = $1 and d.entity = $2 and d.key = {key_text}
        offset 0
    ) d on true
    where d.there or (t.epoch, t.version) < ($3, $4)
), gone as (
    delete from {table} t
    where t.ctid = any(array(select row_ctid from found where row_ctid is not null))
){open}
insert into cloud_meta.tombstones as t (site, entity, key, epoch, version)
select $1, $2, f.key, $3, $4
from found f
on conflict (site, entity, key) do update
set epoch = excluded.epoch, version = excluded.version
where (t.epoch, t.version) <= (excluded.epoch, excluded.version){close}
