-- Part of upsert.sql and delete.sql if one statement applies a whole batch: checks that it is the batch's
-- turn, and that the entity's table has the version for which the statement was made. Nothing is written if
-- either is not so. The only turn here is the usual one: the next batch of the same term.
-- $1 site, $2 entity, $3 epoch. {table_version} version of the table, {source} source id, {term}, {nonce},
-- {batch}.
known as materialized (
    select e.version = {table_version} as fits, m.epoch, m.version
    from cloud_meta.sources o
    join cloud_meta.schemas s on s.site = o.site
    join cloud_meta.entities e using (entity)
    left join cloud_meta.truncate_marks m on m.site = s.site and m.entity = s.entity
    where o.site = $1 and o.source_id = {source} and s.entity = $2
        and o.epoch = $3 and o.term = {term} and o.nonce = {nonce} and o.batch = {batch} - 1
), 
