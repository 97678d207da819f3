-- Keys that a server without `changes` may have. A key is kept as a hash of 16 bytes, which is given as a
-- UUID's text.

-- name: note
-- $1 the drain's term, null if it is not fenced   $2 the entity's number   $3 hashes
with mine as materialized (select case when $1::bigint is not null then cloud_sync.hold_term($1) end)
insert into cloud_sync.sent (entity, digest)
select distinct $2::smallint, d::uuid from mine, unnest($3::text[]) d
on conflict do nothing

-- name: known
-- $1 the entity's number   $2 hashes. Returns which of them are noted, counted from 1.
select nth
from unnest($2::text[]) with ordinality d (digest, nth)
where exists (select from cloud_sync.sent s where s.entity = $1 and s.digest = d.digest::uuid)

-- name: forget
-- $1 the drain's term   $2 the entity's number   $3 hashes
with mine as materialized (select cloud_sync.hold_term($1))
delete from cloud_sync.sent s using mine, unnest($3::text[]) d
where s.entity = $2 and s.digest = d::uuid
