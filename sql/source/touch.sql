-- Touches rows again.

-- name: touch
-- $1 the entity's number   $2 numbers   $3 keys. Returns the transaction's number.
select cloud_sync.touch($1, 'w', $2, $3)

-- name: entity_numbers
-- $1 the entities' names
select name, id from cloud_sync.entity where name = any($1)
