-- Deletes rows by key, whatever their version, and leaves tombstones with the version that the rows had: an
-- older change does not bring them back, a newer one does.
-- $1 site, $2 entity, $3… one array a key column. {recorded} writes the history.
-- Why rows are looked up one by one and deleted by ctid: see upsert_guard.sql.
-- Returns how many rows there were. Writes the entity's table and cloud_meta.tombstones.
with incoming as (
    select {expressions}
    from (select {arrays}) as r
), gone as (
    delete from {table} t
    where t.ctid = any(array(
        select found.row_ctid
        from incoming i
        cross join lateral (
            select t.ctid as row_ctid
            from {table} t
            where t."_site" = $1 and {same_key}
            offset 0
        ) found
    ))
    returning {deleted_key} as key, t."_epoch" as epoch, t."_version" as version
), buried as (
    insert into cloud_meta.tombstones (site, entity, key, epoch, version)
    select $1, $2, key, epoch, version
    from gone
    where (epoch, version) > (0, 0)
    on conflict (site, entity, key) do update set epoch = excluded.epoch, version = excluded.version
){recorded}
select count(*) from gone
