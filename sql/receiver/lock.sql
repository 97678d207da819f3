-- Takes a lock until the transaction ends, and pins the planner to index lookups for as long.
-- $1 name of the lock.
select
    cloud_meta.take_lock($1),
    set_config('enable_seqscan', 'off', true),
    set_config('enable_hashjoin', 'off', true),
    set_config('enable_mergejoin', 'off', true),
    set_config('plan_cache_mode', 'force_generic_plan', true)
