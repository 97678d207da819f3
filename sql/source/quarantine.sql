-- The quarantine: rows that the cloud refused, or that cannot be read. One entry a row, by entity and the
-- key's hash.

-- part: columns
-- Of an entry, in the order of its fields.
entity, key, position, op::text, code, error, attempts,
to_json(first_refused_at)#>>'{}', to_json(refused_at)#>>'{}'

-- name: occupied
-- Which of the entities $1 have entries.
select e.name
from unnest($1) e (name)
where exists (select from cloud_sync.quarantine q where q.entity = e.name)

-- name: refuse
-- Keeps refused changes while the term is the drain's. A second refusal is no longer provisional.
-- $1 entities, $2 keys, $3 positions, $4 ops, $5 images, $6 codes, $7 errors, $8 whether provisional, $9 the
-- drain's term, $10 seconds until the row is touched again. Returns entity, key, and whether it is
-- provisional.
with mine as materialized (select cloud_sync.hold_term($9))
insert into cloud_sync.quarantine as q
    (entity, key, position, op, image, code, error, provisional, next_attempt)
select n.entity, n.key, n.position, n.op, n.image, n.code, n.error, n.provisional,
       now() + n.wait * interval '1 s'
from mine, (
    select distinct on (entity, key) *
    from unnest($1::text[], $2::text[], $3::bigint[], $4::"char"[], $5::text[], $6::int[], $7::text[],
                $8::boolean[], $10::float8[])
        u (entity, key, position, op, image, code, error, provisional, wait)
    order by entity, key, position desc) n
on conflict (entity, md5(key)) do update
set position = excluded.position, op = excluded.op, image = excluded.image, code = excluded.code,
    error = excluded.error, provisional = false,
    attempts = case when q.provisional then q.attempts else q.attempts + 1 end, refused_at = now(),
    next_attempt = least(now() + (excluded.next_attempt - now()) * 2 ^ least(q.attempts, 20),
                         now() + interval '1 hour')
returning entity, key, provisional

-- name: clear_entity
-- Takes all entries of an entity away. $1 the entity   $2 the drain's term
with mine as materialized (select cloud_sync.hold_term($2))
delete from cloud_sync.quarantine using mine where entity = $1

-- name: release
-- Takes entries away that are superseded. $1 entities   $2 keys   $3 the drain's term   $4 images that were
-- accepted. Returns whether the cloud has accepted the row as it was when it failed.
with mine as materialized (select cloud_sync.hold_term($3))
delete from cloud_sync.quarantine q
using mine, unnest($1::text[], $2::text[], $4::text[]) a (entity, key, image)
where q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key
returning coalesce(q.next_attempt is not null and q.image = a.image, false)

-- name: oldest
-- The oldest entries of entity $1, or of all if it is null; at most $2.
select {columns}
from cloud_sync.quarantine
where ($1::text is null or entity = $1) and not provisional
order by first_refused_at, entity, key
limit $2

-- name: count
-- Of entity $1, or of all if it is null.
select count(*) from cloud_sync.quarantine where ($1::text is null or entity = $1) and not provisional

-- name: counts
select entity, count(*) from cloud_sync.quarantine where not provisional group by entity order by entity

-- name: page
-- The entries after entity $1 and key $2; at most $3.
select {columns}
from cloud_sync.quarantine
where (entity, md5(key)) > ($1, md5($2)) and not provisional
order by entity, md5(key)
limit $3

-- name: at_positions
select {columns}
from cloud_sync.quarantine
where position = any($1) and not provisional
order by entity, key

-- name: show
-- The entries at position $1, with their images.
select {columns}, image
from cloud_sync.quarantine
where position = $1 and not provisional
order by entity, key
limit 100

-- name: of_row
-- The entry of the row of entity $1 with the key $2.
select {columns}
from cloud_sync.quarantine
where entity = $1 and md5(key) = md5($2) and key = $2

-- name: refused_since
-- Which of the rows of entity $1 with the keys $2 were refused since $3, in microseconds since 1970.
select q.key, q.code, q.error
from unnest($2::text[]) a (key)
join cloud_sync.quarantine q on q.entity = $1 and md5(q.key) = md5(a.key) and q.key = a.key
where not q.provisional and q.refused_at >= to_timestamp($3::bigint / 1e6)

-- name: refused
-- The entries of the rows of entity $1 with the keys $2.
select q.key, q.code, q.error, q.provisional
from unnest($2::text[]) a (key)
join cloud_sync.quarantine q on q.entity = $1 and md5(q.key) = md5(a.key) and q.key = a.key

-- name: discard
-- $1 entities   $2 keys
delete from cloud_sync.quarantine q using unnest($1::text[], $2::text[]) a (entity, key)
where q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key

-- name: discard_all
delete from cloud_sync.quarantine

-- name: due_counts
-- Seconds until the next row is due, how many wait for their time or were set aside by hand, and how many of
-- them were set aside by hand (code $1).
select extract(epoch from min(next_attempt) filter (where next_attempt > now()) - now())::float8, count(*),
       count(*) filter (where code = $1)
from cloud_sync.quarantine
where next_attempt is not null or code = $1

-- name: due
-- Rows whose time has come; at most $1.
select entity, key
from cloud_sync.quarantine
where next_attempt <= now() and op <> 't'
order by next_attempt
limit $1

-- name: put_off
-- $1 entities   $2 keys
update cloud_sync.quarantine q set next_attempt = now() + interval '1 hour'
from unnest($1::text[], $2::text[]) a (entity, key)
where q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key and q.next_attempt <= now()

-- name: put_forward
-- Makes the next rows due that wait for their time; at most $1.
update cloud_sync.quarantine set next_attempt = now()
where (entity, md5(key)) in (
    select entity, md5(key) from cloud_sync.quarantine
    where next_attempt > now() order by next_attempt limit $1)

-- name: expected
-- Which rows of $1 (entities) and $2 (keys) wait for their time or were set aside by hand (code $3): counted
-- from 1, and whether by hand.
select a.nth, q.code = $3
from unnest($1::text[], $2::text[]) with ordinality a (entity, key, nth)
join cloud_sync.quarantine q on q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key
where q.next_attempt is not null or q.code = $3

-- name: set_aside
-- Sets a row aside by hand. $1 the entity   $2 the key   $3 the code
insert into cloud_sync.quarantine (entity, key, position, op, code, error)
values ($1, $2, (select last_value from cloud_sync.position), 'u', $3, 'an operator has set it aside')
on conflict (entity, md5(key)) do update
set code = excluded.code, error = excluded.error, provisional = false, next_attempt = null

-- name: release_by_hand
-- $1 entities   $2 keys   $3 the code of rows that were set aside by hand   $4 that of rows that are sent
-- again
update cloud_sync.quarantine q set code = $4, error = 'it is sent again'
from unnest($1::text[], $2::text[]) a (entity, key)
where q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key and q.code = $3

-- name: first_images
-- The images of rows that were refused once. $1 entities   $2 keys
select q.entity, q.image
from unnest($1::text[], $2::text[]) a (entity, key)
join cloud_sync.quarantine q on q.entity = a.entity and md5(q.key) = md5(a.key) and q.key = a.key
where q.attempts <= 1 and q.op = 'u' and q.image is not null

-- name: orphans
-- Keys of refused rows of entity $1 after key $2 whose parents are among those of the arrays from $3 on.
-- {arrays} the arrays, {names} their columns, {same} their comparison with the row's values, {limit} rows at
-- most
select q.key
from cloud_sync.quarantine q
where q.entity = $1 and q.key > $2 and q.op = 'u' and not q.provisional
  and (q.attempts < 10 or q.refused_at < now() - interval '1 hour')
  and exists (select from unnest({arrays}) p ({names}) where {same})
order by q.key
limit {limit}
