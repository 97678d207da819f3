-- Deletes rows, each unless the table holds a newer state of it, and leaves a tombstone for each delete that is the
-- newest that is known of its row.
-- $1 site, $2 epoch, $3 entity, $4 positions, $5… one array a key column. {open} and {close} wrap it for the history.
-- {known} and {within}: see known.sql.
-- Lookups by row and deletes by place: see upsert_guard.sql.
-- Affects one row for each change that was applied. Writes the entity's table and cloud_meta.tombstones.
with {known}incoming as (
    select r."_position", {expressions}
    from (select {arrays}) as r{within}
), newest as (
    select i.*, t.place as "_position_row"
    from incoming i
    left join lateral (
        select t.ctid as place, t."_epoch", t."_position"
        from {table} t
        where t."_site" = $1 and {same_key}
        offset 0
    ) t on true
    where t.place is null or (t."_epoch", t."_position") < ($2, i."_position")
), gone as (
    delete from {table} t
    where t.ctid = any(array(select "_position_row" from newest where "_position_row" is not null))
){open}
insert into cloud_meta.tombstones as t (site, entity, key, epoch, position)
select $1, $3, {key_text}, $2, i."_position"
from newest i
on conflict (site, entity, key) do update
set epoch = excluded.epoch, position = excluded.position
where (t.epoch, t.position) < (excluded.epoch, excluded.position){close}
