-- One batch of a window: the rows that are visible in snapshot hi and not in snapshot lo, in the order of positions.
--
-- $1 the position to go on after   $2 hi   $3 lo   $4 rows at most   $5 bytes at most (one row goes in any case)
-- For windows that may have rows of any size; sql/window_small.sql serves the others, and returns the same but `more`.
-- Returns position, entity number, op, captured at, key, image, document, layout, packed; an image is in one of image,
-- document and packed; and whether the window has more: only this tells that it ends. A packed row is reckoned as the JSON that
-- is made of it, which also has the columns' names.
--
-- Positions are taken before commit, so `position > last` would lose what commits late; and comparing transaction
-- numbers would read a later change of a row before an earlier one. Row locks make the positions of one row rise in
-- commit order, so the order of positions within a window is right. The plan does not know the snapshots: each is read once,
-- not once a row.
select position, entity, op, captured_at, key, image, document, layout, packed, more
from (
    select position, entity, op, captured_at, key, image, document, layout, packed,
           sum(coalesce(octet_length(key), 0) + coalesce(octet_length(image),
                   case when packed is not null then least(octet_length(packed), 500000000) * 3
                        when pg_column_compression(document) is null then pg_column_size(document)
                        else octet_length(document::text) end, 0) + 64)
               over along as bytes_before,
           lead(position) over along is not null as more
    from cloud_sync.outbox
    where position > $1
      and pg_visible_in_snapshot(xid, (select $2::text::pg_snapshot))
      and not pg_visible_in_snapshot(xid, (select $3::text::pg_snapshot))
    window along as (order by position rows between unbounded preceding and 1 preceding)
    order by position
    limit $4
) as bounded
where coalesce(bytes_before, 0) < $5
order by position
