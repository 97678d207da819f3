-- The checkpoint's mirror. Term and serial order mirrors: an older one never replaces a newer one.

-- name: mirror
-- Writes the mirror while the term is the drain's; affects no row if another drain has taken over.
-- $1 source id   $2 the drain's term   $3 serial   $4 body   $5 the checkpoint's term
with mine as materialized (select term from cloud_sync.term where term = $2 for share),
written as (
    insert into cloud_sync.checkpoint as c (source_id, term, serial, body)
    select $1, $5, $3, $4 from mine
    on conflict (source_id) do update
    set term = excluded.term, serial = excluded.serial, body = excluded.body, mirrored_at = now()
    where (c.term, c.serial) <= (excluded.term, excluded.serial))
select from mine

-- name: mirrored
select body from cloud_sync.checkpoint where source_id = $1
