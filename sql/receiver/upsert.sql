-- Upserts rows, each unless the table holds a newer state of it.
-- $1 site, $2 entity, $3 epoch, $4 version, $5… one array a column.
-- {guard} is upsert_guard.sql if the entity may have tombstones; {open} and {close} wrap it for the history.
-- {known} and {within}: see known.sql.
-- Affects one row for each change that was applied.
-- Writes the entity's table.
-- The arrays are unnested side by side in a select list, as PostgreSQL streams them then; in a from clause it
-- would store each of them first (300,000 rows of 12 columns: 1.6 s against 2.4 s, and 4.1 s with
-- json_populate_record).
with {known}incoming as (
    select {expressions}
    from (select {arrays}) as r{within}
){guard}{open}
insert into {table} as t ("_site", "_epoch", "_version", {columns})
select $1, $3, $4, {values}
from {from} as i
on conflict ("_site", {key}) do update
set "_epoch" = excluded."_epoch", "_version" = excluded."_version", {set}
where (t."_epoch", t."_version") <= (excluded."_epoch", excluded."_version"){close}
