-- One page of a window: touches that are visible in snapshot hi and not in snapshot lo, in the order of positions.
--
-- $1 the position to go on after   $2 hi   $3 lo   $4 touches at most
-- Returns position, entity number, op, captured at, number, key.
--
-- Positions are taken before commit, so `position > last` would lose what commits late. Within a window the order of
-- positions has parents before their children. The plan does not know the snapshots: each is read once, not once a row.
select position, entity, op, captured_at, number, key
from cloud_sync.outbox
where position > $1
  and pg_visible_in_snapshot(xid, (select $2::text::pg_snapshot))
  and not pg_visible_in_snapshot(xid, (select $3::text::pg_snapshot))
order by position
limit $4
