-- Part of upsert.sql: leaves out rows with a newer tombstone, and takes the tombstones of the others away.
-- Each row looks its tombstone up by itself (`offset 0` keeps it so), and tombstones go by their place in the table:
-- a join would be planned for the few tombstones that there were at first, and be quadratic for many.
-- Writes cloud_meta.tombstones.
, live as (
    select i.*, d.place as "_version_tombstone"
    from incoming i
    left join lateral (
        select d.ctid as place, d.epoch, d.version
        from cloud_meta.tombstones d
        where d.site = $1 and d.entity = $2 and d.key = {key_text}
        offset 0
    ) d on true
    where d.place is null or (d.epoch, d.version) <= ($3, $4)
), raised as (
    delete from cloud_meta.tombstones d
    where d.ctid = any(array(select "_version_tombstone" from live where "_version_tombstone" is not null))
)
