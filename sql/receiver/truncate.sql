-- Deletes all rows of a site's entity that are not newer than a truncate, and leaves the mark that keeps them
-- away.
-- $1 site, $2 entity, $3 epoch, $4 version. {open} and {close} wrap it for the history.
-- Affects one row if no newer truncate was known.
-- Writes the entity's table, cloud_meta.tombstones (those that the mark replaces) and
-- cloud_meta.truncate_marks.
with gone as (
    delete from {table} t
    where t."_site" = $1 and (t."_epoch", t."_version") <= ($3, $4)
), swept as (
    delete from cloud_meta.tombstones d
    where d.site = $1 and d.entity = $2 and (d.epoch, d.version) <= ($3, $4)
){open}
insert into cloud_meta.truncate_marks as t (site, entity, epoch, version)
values ($1, $2, $3, $4)
on conflict (site, entity) do update
set epoch = excluded.epoch, version = excluded.version
where (t.epoch, t.version) <= (excluded.epoch, excluded.version){close}
