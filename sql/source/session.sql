-- Settings of our sessions with the site's database.

-- name: pin
-- Every session: a site's own defaults must not break the replicator, and values must read the same. What a
-- role may not see under row-level security must fail, not be missing. First of all the search path: an
-- operator, a function or a type in a schema of the site is never one of ours, however well it fits. Where
-- the site looks for its tables, and what its conditions mean, is kept in settings of ours.
-- `transaction_timeout` exists from PostgreSQL 17 on.
select pg_catalog.set_config('cloud_sync.path', pg_catalog.current_setting('search_path'), false),
    pg_catalog.set_config('cloud_sync.schemas', pg_catalog.current_schemas(false)::pg_catalog.text, false);
set search_path = pg_catalog, pg_temp;
set statement_timeout = 0;
set idle_in_transaction_session_timeout = 0;
set lock_timeout = '30s';
set idle_session_timeout = 0;
set standard_conforming_strings = on;
set synchronous_commit = on;
set timezone = 'UTC';
set datestyle = 'ISO, YMD';
set intervalstyle = 'postgres';
set extra_float_digits = 1;
set bytea_output = 'hex';
set xmlbinary = base64;
set lc_monetary = 'C';
set quote_all_identifiers = off;
set row_security = off;
set jit = off;
set max_parallel_workers_per_gather = 0;
set default_transaction_isolation = 'read committed';
set default_transaction_read_only = off;
set default_transaction_deferrable = off;
set client_min_messages = warning;
select set_config(name, '0', false) from pg_catalog.pg_settings where name = 'transaction_timeout'

-- part: read_windows
-- A session that reads windows. A page is the beginning of a long window, in the order of the segments'
-- indexes, and rows are found by their keys. With statistics from an unlucky moment the planner would rather
-- sort or scan. There is one such plan, and planning it again for each batch would cost a lone commit more
-- than reading it.
set enable_sort = off;
set enable_seqscan = off;
set enable_bitmapscan = off;
set enable_hashjoin = off;
set enable_mergejoin = off;
set plan_cache_mode = force_generic_plan

-- name: wait_for_locks
-- A session that reads windows ({read_windows}) waits so long for a lock: a locked table must not hold up the
-- others.
{read_windows}; set lock_timeout = '{lock_timeout}'

-- name: process
-- The server process of the session.
select pg_catalog.pg_backend_pid()
