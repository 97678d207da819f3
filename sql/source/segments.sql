-- The segments of the outbox: see sql/functions/segments.sql.

-- name: add
-- Adds segments until there are $1.
select cloud_sync.add_segment()
from generate_series(1, $1 - (
    select count(*) from pg_inherits where inhparent = 'cloud_sync.outbox'::regclass))

-- name: left
-- The segments that hold something and that writers do not use, as one array.
select array(
    select segment
    from generate_series(0, (
        select count(*)::int - 1 from pg_inherits where inhparent = 'cloud_sync.outbox'::regclass)) segment
    where segment <> coalesce(pg_sequence_last_value('cloud_sync.state'), 0) & 65535
      and pg_relation_size(format('cloud_sync.segment_%s', segment)) > 0)

-- name: trim
-- $1 the segment   $2 the snapshot and $3 the position up to which the cloud has accepted   $4 the drain's
-- term
select cloud_sync.trim_segment($4, $1, $2::text::pg_snapshot, $3)

-- name: rotate
-- If $1, sends writers to another segment; a new one may be added if this one has $2 bytes. Returns whether
-- writers were sent on, and whether a segment holds something.
select case when $1 then cloud_sync.rotate($2) else false end,
       exists (
           select from pg_inherits
           where inhparent = 'cloud_sync.outbox'::regclass and pg_relation_size(inhrelid) > 0)
