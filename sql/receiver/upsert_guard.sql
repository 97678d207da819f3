-- Part of upsert.sql: leaves out rows with a newer tombstone, and deletes the tombstones of the others.
-- Each row looks up its own tombstone (`offset 0` prevents a join), and tombstones are deleted by their ctid:
-- a join would be planned for the few tombstones that there were at first, and take quadratic time for many.
-- Writes cloud_meta.tombstones.
, live as (
    select i.*, d.row_ctid as "_version_tombstone"
    from incoming i
    left join lateral (
        select d.ctid as row_ctid, d.epoch, d.version
        from cloud_meta.tombstones d
        where d.site = $1 and d.entity = $2 and d.key = {key_text}
        offset 0
    ) d on true
    where d.row_ctid is null or (d.epoch, d.version) <= ($3, $4)
), raised as (
    delete from cloud_meta.tombstones d
    where d.ctid = any(array(select "_version_tombstone" from live where "_version_tombstone" is not null))
)
