-- The term and its nonces, and the server's incarnation.

-- name: at_open
select term, ended from cloud_sync.term

-- name: begin
-- Begins a term, unless another drain has begun one since: then it changes nothing and counts no row. In one
-- statement the checkpoint becomes the mirror, and the outbox's epoch that of the checkpoint's identity.
-- $1 the term that this drain knows   $2 the new term   $3 its nonce   $4 epoch   $5 source id   $6 serial  
-- $7 body
with mine as (
    update cloud_sync.term set term = $2, ended = false, begun_at = now() where term = $1 returning term),
named as (
    insert into cloud_sync.term_nonce select term, $3 from mine
    on conflict (term) do update set nonce = excluded.nonce),
settled as (
    update cloud_sync.identity set epoch = $4, epoch_settled = true, declared_new = false
    where exists (select from mine) and (epoch <> $4 or not epoch_settled or declared_new)),
mirrored as (
    insert into cloud_sync.checkpoint (source_id, term, serial, body) select $5, term, $6, $7 from mine
    on conflict (source_id) do update
    set term = excluded.term, serial = excluded.serial, body = excluded.body, mirrored_at = now())
select count(*) from mine

-- name: nonce
select nonce from cloud_sync.term_nonce where term = $1

-- name: end
update cloud_sync.term set ended = true where term = $1

-- name: name_incarnation
-- Names the incarnation if it has no name yet: a crash recovery has emptied the table, which is unlogged.
insert into cloud_sync.incarnation (id) values (gen_random_uuid()) on conflict do nothing

-- name: incarnation
select id::text from cloud_sync.incarnation
