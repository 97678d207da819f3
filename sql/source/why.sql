-- What is known of one row, for people who ask why it is not in the cloud.

-- name: waiting
-- The last touch of a row that the cloud has not accepted: its position, when it was captured, how many such
-- touches there are before it. A touch that does not tell its row counts, too.
--
-- $1 the entity's number   $2 the key, if it is one integer   $3 the key's text otherwise   $4 lo
-- $5 hi (equal to lo if no window is being delivered)   $6 the position accepted within the window   $7 a
-- position below which all that lo does not see cannot lie   $8 whether the key has several columns: its text is
-- that of an array of their texts
with waiting as materialized (
    select position, captured_at, entity, op, number, key from cloud_sync.outbox
    where position > $7
      and not pg_visible_in_snapshot(xid, (select $4::text::pg_snapshot))
      and not (position <= $6 and pg_visible_in_snapshot(xid, (select $5::text::pg_snapshot))))
select w.position, w.captured_at, (select count(*) from waiting b where b.position < w.position)
from waiting w
where case when w.entity <> $1 then false
           when w.op in ('t', 'g') then true
           when w.number = $2 or w.key = $3 then true
           when $8 and w.key like '{%}' then w.key::text[] = $3::text[]
      end
order by w.position desc limit 1

-- name: unanswered
-- When a row of entity $1 is sent again whose request got no answer. $2 its key
select due from cloud_sync.unanswered where entity = $1 and md5(key) = md5($2) and key = $2

-- name: files
-- The files that the row of entity $1 with the key $2 names: path, state, why it is not uploaded.
select m.path, m.state, m.error
from cloud_sync.media_ref r
join cloud_sync.media m on m.path = r.path
where r.entity = $1 and md5(r.key) = md5($2) and r.key = $2
order by m.path

-- name: backfilled
-- Whether the backfill of entity $1 has ended. No row if none was begun.
select finished_at is not null from cloud_sync.backfill where entity = $1
