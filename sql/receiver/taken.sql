-- Part of upsert.sql and delete.sql if one statement applies a whole batch: records the batch with its
-- answer.
-- $1 site, $3 epoch. {source} source id, {term}, {batch}, {kept_batches} how many batches are kept,
-- {body_hash}, {lines} lines of the batch (each is either applied or skipped), {database} the source's
-- database.
-- Reads `known` of known.sql and `applied` of the statement.
-- Writes cloud_meta.sources and cloud_meta.batches.
taken as (
    update cloud_meta.sources o
    set batch = {batch}, database = {database}, updated_at = now()
    from known k
    where k.fits and o.site = $1 and o.source_id = {source}
    returning o.site
), answered as (
    insert into cloud_meta.batches as b (site, source_id, slot, epoch, term, batch, body_hash, answer)
    select
        t.site, {source}, ({batch} % {kept_batches})::smallint, $3, {term}, {batch}, {body_hash},
        format('{"applied":%s,"skipped":%s,"rejected":[]}', a.changes, {lines} - a.changes)
    from taken t, (select count(*) as changes from applied) a
    on conflict (site, source_id, slot) do update
    set epoch = excluded.epoch,
        term = excluded.term,
        batch = excluded.batch,
        body_hash = excluded.body_hash,
        answer = excluded.answer
)
