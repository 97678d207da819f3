-- The replicator's sleep: see sql/functions/state.sql.

-- name: listen
listen cloud_sync

-- name: can_prepare_transactions
-- Whether the server allows prepared transactions: then triggers never notify.
select current_setting('max_prepared_transactions') <> '0'

-- name: arm
-- Writers notify for the next $1 seconds.
select cloud_sync.set_state(null, extract(epoch from clock_timestamp())::bigint + $1)

-- name: disarm
select cloud_sync.set_state(null, 0)
