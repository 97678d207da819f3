-- Reads the outbox: windows of touches, and how much waits. The planner must find each page along the
-- segments' indexes.

-- name: window
-- One page of a window: touches that are visible in snapshot hi and not in snapshot lo, in the order of
-- positions.
--
-- $1 the position to go on after   $2 hi   $3 lo   $4 touches at most
-- Returns position, entity number, op, captured at, number, key.
--
-- Positions are taken before commit, so `position > last` would lose what commits late. Within a window the
-- order of positions has parents before their children. The plan does not know the snapshots: each is read
-- once, not once a row.
select position, entity, op, captured_at, number, key
from cloud_sync.outbox
where position > $1
  and pg_visible_in_snapshot(xid, (select $2::text::pg_snapshot))
  and not pg_visible_in_snapshot(xid, (select $3::text::pg_snapshot))
order by position
limit $4

-- name: open_window
-- Opens a window and returns its first page: the window ends with what this statement's own snapshot shows.
--
-- $1 the position to go on after   $2 lo   $3 touches at most
-- Returns a row of position 0 whose key is the snapshot; then position, entity number, op, captured at, number,
-- key of each touch, in the order of positions.
select 0::bigint as position, 0::smallint as entity, 's'::"char" as op, clock_timestamp() as captured_at,
       null::bigint as number, pg_current_snapshot()::text as key
union all
(
    select position, entity, op, captured_at, number, key
    from cloud_sync.outbox
    where position > $1
      and not pg_visible_in_snapshot(xid, (select $2::text::pg_snapshot))
    order by position
    limit $3
)

-- name: last_position
-- The highest position that was taken.
select case when is_called then last_value else last_value - 1 end from cloud_sync.position

-- name: fence
-- Takes a transaction number if a position above $1 has been taken, and writes a message, so that the commit
-- waits for the disk. If $1 is below 0, it takes the number alone.
select case when $1::bigint < 0 then pg_current_xact_id()::text
            when last_value > $1 then pg_logical_emit_message(true, 'cloud_sync', '')::text end
from cloud_sync.position

-- name: lag
-- What waits: how many changes the cloud has not accepted, and the age of the oldest in seconds.
--
-- $1 lo   $2 hi (equal to lo if no window is being delivered)   $3 the position accepted within the window
-- $4 a position below which all that lo does not see cannot lie
select count(*), coalesce(extract(epoch from clock_timestamp() - min(captured_at)), 0)::float8
from cloud_sync.outbox
where position > $4
  and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
  and not (position <= $3 and pg_visible_in_snapshot(xid, $2::text::pg_snapshot))

-- name: bytes
-- Bytes that the outbox takes on the disk.
select coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint
from pg_inherits
where inhparent = 'cloud_sync.outbox'::regclass

-- name: first_from_position
-- The first position that is not below $1.
select min(position) from cloud_sync.outbox where position >= $1

-- name: first_from_time
-- The position of the first touch that was captured at $1 or later.
select min(position) from cloud_sync.outbox where captured_at >= $1::text::timestamptz

-- name: log_end
-- Where the server's log ends, and up to where it is on the disk.
select pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()

-- name: is_flushed
-- Whether the server's log is on the disk up to $1.
select pg_current_wal_flush_lsn() >= $1

-- name: flush
-- Writes a message whose commit takes all before it to the disk, and to the standby if one is waited for.
select pg_logical_emit_message(true, 'cloud_sync', '')
