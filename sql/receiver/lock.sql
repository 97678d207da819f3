-- Takes a lock until the transaction ends.
-- $1 name of the lock.
select cloud_meta.take_lock($1)
