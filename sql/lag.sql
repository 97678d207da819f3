-- What waits: how many changes the cloud has not accepted, and the age of the oldest in seconds.
--
-- $1 lo   $2 hi (equal to lo where no window is under way)   $3 the position accepted within the window
-- $4 a position below which all that lo does not see cannot lie
select count(*), coalesce(extract(epoch from clock_timestamp() - min(captured_at)), 0)::float8
from cloud_sync.outbox
where position > $4
  and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
  and not (position <= $3 and pg_visible_in_snapshot(xid, $2::text::pg_snapshot))
