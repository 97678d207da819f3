-- Deletes all rows of a site's entity that are older than a truncate, and leaves the mark that keeps them away.
-- $1 site, $2 epoch, $3 entity, $4 position. {open} and {close} wrap it for the history.
-- Affects one row where no newer truncate was known. Writes the entity's table, cloud_meta.tombstones (what the mark
-- makes superfluous) and cloud_meta.truncate_marks.
with gone as (
    delete from {table} t
    where t."_site" = $1 and (t."_epoch", t."_position") < ($2, $4)
), swept as (
    delete from cloud_meta.tombstones d
    where d.site = $1 and d.entity = $3 and (d.epoch, d.position) <= ($2, $4)
){open}
insert into cloud_meta.truncate_marks as t (site, entity, epoch, position)
values ($1, $3, $2, $4)
on conflict (site, entity) do update
set epoch = excluded.epoch, position = excluded.position
where (t.epoch, t.position) < (excluded.epoch, excluded.position){close}
