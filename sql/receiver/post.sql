-- Upserts rows that carry no version, as the newest state. A row that exists keeps its version; a new one
-- takes the version of its tombstone or of the entity's truncate mark, so that what was older than those
-- stays older.
-- $1 site, $2 entity, $3… one array a column. {open} and {close} wrap it for the history.
-- Why rows are looked up one by one and deleted by ctid: see upsert_guard.sql.
-- Writes the entity's table and cloud_meta.tombstones.
with incoming as (
    select {expressions}
    from (select {arrays}) as r
), placed as (
    select i.*, p.row_ctid as "_version_tombstone", p.epoch as "_epoch", p.version as "_version"
    from incoming i
    left join lateral (
        select max(row_ctid) over () as row_ctid, epoch, version
        from (
            select d.ctid as row_ctid, d.epoch, d.version
            from cloud_meta.tombstones d
            where d.site = $1 and d.entity = $2 and d.key = {key_text}
            union all
            select null, m.epoch, m.version
            from cloud_meta.truncate_marks m
            where m.site = $1 and m.entity = $2
        ) known
        order by epoch desc, version desc
        limit 1
    ) p on true
), raised as (
    delete from cloud_meta.tombstones d
    where d.ctid = any(array(select "_version_tombstone" from placed where "_version_tombstone" is not null))
){open}
insert into {table} as t ("_site", "_epoch", "_version", {columns})
select $1, coalesce(i."_epoch", 0), coalesce(i."_version", 0), {values}
from placed as i
on conflict ("_site", {key}) do update set {set}{close}
