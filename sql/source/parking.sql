-- Entities that cannot be read or sent now, and their touches, which are kept apart from the outbox.

-- name: park
-- Keeps touches of an entity and notes why, while the term is the drain's.
-- $1 the drain's term   $2 the entity's number   $3 why   $4 ops   $5 numbers   $6 keys
with mine as materialized (select cloud_sync.hold_term($1)),
noted as (
    update cloud_sync.entity set parked = $3, parked_at = coalesce(parked_at, now()) from mine where id = $2)
insert into cloud_sync.parked_key (entity, op, number, key)
select distinct $2, o, n, k from mine, unnest($4::"char"[], $5::bigint[], $6::text[]) u (o, n, k)

-- name: unpark
-- $1 the drain's term   $2 the entity's number
select cloud_sync.unpark($1, $2)

-- name: reason
-- Why an entity is parked; null if it is not.
select parked from cloud_sync.entity where id = $1

-- name: keeps
-- Whether a touch of a row is kept, or one that does not tell its row.
-- $1 the entity's number   $2 the key, if it is one integer   $3 the key's text   $4 whether the key has several
-- columns: its text is that of an array of their texts
select exists (
    select from cloud_sync.parked_key
    where entity = $1
      and case when op in ('t', 'g') then true
               when number = $2 or key = $3 then true
               when $4 and key like '{%}' then key::text[] = $3::text[]
          end)
