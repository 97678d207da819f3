-- Deletes rows by key, whatever their position, and leaves tombstones with the position that they had: a replay of
-- what made them does not bring them back, a newer change does.
-- $1 site, $2 unused, $3 entity, $4 zeros, $5… one array a key column. {noted} writes the history.
-- Lookups by row and deletes by place: see upsert_guard.sql.
-- Answers how many rows there were. Writes the entity's table and cloud_meta.tombstones.
with incoming as (
    select {expressions}
    from (select {arrays}) as r
), gone as (
    delete from {table} t
    where t.ctid = any(array(
        select found.place
        from incoming i
        cross join lateral (
            select t.ctid as place
            from {table} t
            where t."_site" = $1 and {same_key}
            offset 0
        ) found
    ))
    returning {deleted_key} as key, t."_epoch" as epoch, t."_position" as position
), buried as (
    insert into cloud_meta.tombstones (site, entity, key, epoch, position)
    select $1, $3, key, epoch, position
    from gone
    where (epoch, position) > (0, 0)
    on conflict (site, entity, key) do update set epoch = excluded.epoch, position = excluded.position
){noted}
select count(*) from gone
