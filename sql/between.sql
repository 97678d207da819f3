-- The changes that one checkpoint has accepted and an earlier one has not.
--
-- $1 a position below which nothing lies that the earlier one has not accepted
-- $2 lo, $3 hi and $4 position of the earlier one   $5 lo, $6 hi and $7 position of the later one
-- $8 the highest position that the later one has read: a change above it was written since, perhaps under a transaction
--    number that the later one's snapshots took for another
-- Returns position, captured at (microseconds since 1970).
select position, (extract(epoch from captured_at) * 1000000)::bigint
from cloud_sync.outbox
where position > $1 and position <= $8
  and not (pg_visible_in_snapshot(xid, $2::text::pg_snapshot)
           or position <= $4 and pg_visible_in_snapshot(xid, $3::text::pg_snapshot))
  and (pg_visible_in_snapshot(xid, $5::text::pg_snapshot)
       or position <= $7 and pg_visible_in_snapshot(xid, $6::text::pg_snapshot))
