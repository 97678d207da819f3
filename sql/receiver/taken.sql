-- Part of upsert.sql and delete.sql where one statement applies a whole batch: notes the batch with its answer.
-- $1 site. {source} source id, {batch}, {body_hash}, {lines} lines of the batch (each is either applied or skipped),
-- {database} the source's database. Reads known.sql's `known` and the statement's `applied`. Writes cloud_meta.sources.
taken as (
    update cloud_meta.sources o
    set batch = {batch},
        body_hash = {body_hash},
        answer = format('{"applied":%s,"skipped":%s,"rejected":[]}', a.changes, {lines} - a.changes),
        database = {database},
        updated_at = now()
    from known k, (select count(*) as changes from applied) a
    where k.fits and o.site = $1 and o.source_id = {source}
)
