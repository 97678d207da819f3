-- Upserts rows that carry no position, in effect as the newest state. A row that stands keeps its position; a new one
-- takes that of its tombstone or of the entity's truncate mark, so that what was older than those stays older.
-- $1 site, $2 unused, $3 entity, $4 zeros, $5… one array a column. {open} and {close} wrap it for the history.
-- Lookups by row and deletes by place: see upsert_guard.sql.
-- Writes the entity's table and cloud_meta.tombstones.
with incoming as (
    select {expressions}
    from (select {arrays}) as r
), placed as (
    select i.*, p.place as "_position_tombstone", p.epoch as "_epoch", p.position as "_position"
    from incoming i
    left join lateral (
        select max(place) over () as place, epoch, position
        from (
            select d.ctid as place, d.epoch, d.position
            from cloud_meta.tombstones d
            where d.site = $1 and d.entity = $3 and d.key = {key_text}
            union all
            select null, m.epoch, m.position
            from cloud_meta.truncate_marks m
            where m.site = $1 and m.entity = $3
        ) known
        order by epoch desc, position desc
        limit 1
    ) p on true
), raised as (
    delete from cloud_meta.tombstones d
    where d.ctid = any(array(select "_position_tombstone" from placed where "_position_tombstone" is not null))
){open}
insert into {table} as t ("_site", "_epoch", "_position", {columns})
select $1, coalesce(i."_epoch", 0), coalesce(i."_position", 0), {values}
from placed as i
on conflict ("_site", {key}) do update set {set}{close}
