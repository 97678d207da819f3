-- Opens a window and returns its first page: the window ends with what this statement's own snapshot shows.
--
-- $1 the position to go on after   $2 lo   $3 touches at most
-- Returns a row of position 0 whose key is the snapshot; then position, entity number, op, captured at, number, key of
-- each touch, in the order of positions.
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
