-- Part of upsert.sql: leaves out rows with a newer tombstone, and takes the older tombstones of the others away.
-- Writes cloud_meta.tombstones.
, live as (
    select i.*
    from incoming i
    left join cloud_meta.tombstones d on d.site = $1 and d.entity = $3 and d.key = {key_text}
    where d.key is null or (d.epoch, d.position) < ($2, i."_position")
), raised as (
    delete from cloud_meta.tombstones d
    using live i
    where d.site = $1 and d.entity = $3 and d.key = {key_text}
)
