-- What an operator has paused. Whoever pauses or resumes notifies the replicators of this database.

-- name: listen
listen cloud_sync_pause

-- name: paused
-- All pauses: the scope, the entity, when it began in microseconds since 1970, and by whom.
select scope, entity, (extract(epoch from paused_at) * 1e6)::bigint, paused_by from cloud_sync.pause

-- name: pause
-- $1 the scope   $2 the entity, or an empty text   $3 by whom. What is paused already stays as it is.
with begun as (
    insert into cloud_sync.pause (scope, entity, paused_by) values ($1, $2, $3) on conflict do nothing returning 1)
select count(*), pg_notify('cloud_sync_pause', '') from begun

-- name: resume
-- $1 the scope   $2 the entity, or an empty text
with ended as (delete from cloud_sync.pause where scope = $1 and entity = $2 returning 1)
select count(*), pg_notify('cloud_sync_pause', '') from ended
