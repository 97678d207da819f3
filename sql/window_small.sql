-- One batch of a window none of whose rows is kept out of line, so that none is large: as sql/window.sql, without the sum over
-- the rows' bytes, which costs a third of reading them.
--
-- $1 the position to go on after   $2 hi   $3 lo   $4 rows at most, one of which only tells that there are more
select position, entity, op, captured_at, key, image, document, layout, packed
from cloud_sync.outbox
where position > $1
  and pg_visible_in_snapshot(xid, (select $2::text::pg_snapshot))
  and not pg_visible_in_snapshot(xid, (select $3::text::pg_snapshot))
order by position
limit $4
