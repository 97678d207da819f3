-- Records a batch as its source's newest, with its answer.
-- $1 site, $2 source id, $3 epoch, $4 term, $5 nonce, $6 batch, $7 the source's database, $8 slot, $9 hash of
-- the body,
-- $10 answer.
-- Writes cloud_meta.sources and cloud_meta.batches.
with newest as (
    insert into cloud_meta.sources (site, source_id, epoch, term, nonce, batch, database)
    values ($1, $2, $3, $4, $5, $6, $7)
    on conflict (site, source_id) do update
    set epoch = excluded.epoch,
        term = excluded.term,
        nonce = excluded.nonce,
        batch = excluded.batch,
        database = excluded.database,
        updated_at = now()
)
insert into cloud_meta.batches (site, source_id, slot, epoch, term, batch, body_hash, answer)
values ($1, $2, $8, $3, $4, $6, $9, $10)
on conflict (site, source_id, slot) do update
set epoch = excluded.epoch,
    term = excluded.term,
    batch = excluded.batch,
    body_hash = excluded.body_hash,
    answer = excluded.answer
