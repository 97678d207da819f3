-- Notes a batch as its source's newest, with the answer that it gets.
-- $1 site, $2 source id, $3 epoch, $4 term, $5 nonce, $6 batch, $7 hash of the body, $8 answer, $9 source's database.
-- Writes cloud_meta.sources.
insert into cloud_meta.sources (site, source_id, epoch, term, nonce, batch, body_hash, answer, database)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (site, source_id) do update
set epoch = excluded.epoch,
    term = excluded.term,
    nonce = excluded.nonce,
    batch = excluded.batch,
    body_hash = excluded.body_hash,
    answer = excluded.answer,
    database = excluded.database,
    updated_at = now()
