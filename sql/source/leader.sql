-- The leader's lock: one on view cloud_sync.leader, which is made for it.

-- name: lock
-- Takes it, or fails at once. The transaction stays open, and does nothing else.
begin; lock table cloud_sync.leader in exclusive mode nowait

-- name: holder
-- The session that holds it, in words.
select 'session ' || l.pid || coalesce(' from ' || host(a.client_addr), '')
from pg_locks l
left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'relation' and l.granted and l.mode = 'ExclusiveLock'
  and l.database = (select oid from pg_database where datname = current_database())
  and l.relation = to_regclass('cloud_sync.leader') and l.pid <> pg_backend_pid()
