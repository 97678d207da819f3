-- Whether schema cloud_sync is whole.

-- name: check
-- Tables and sequences that a crash would empty; capture functions that cannot write for every writer; how
-- many segments are missing; whether the tables without data are there. Table `incarnation` is unlogged on
-- purpose.
select (select string_agg(relname, ', ') from pg_class c where relnamespace = 'cloud_sync'::regnamespace
            and relkind in ('r', 'S') and relpersistence <> 'p' and relname <> 'incarnation'),
       (select string_agg(p.proname, ', ') from pg_proc p where p.pronamespace = 'cloud_sync'::regnamespace
            and p.proname like 'capture\_%' and (not p.prosecdef
                or not pg_has_role(current_user, p.proowner, 'usage')
                or exists (select from pg_inherits where inhparent = 'cloud_sync.outbox'::regclass
                           and not has_table_privilege(p.proowner, inhrelid, 'insert'))
                or not has_sequence_privilege(p.proowner, 'cloud_sync.position', 'usage')
                or not has_sequence_privilege(p.proowner, 'cloud_sync.state', 'select,usage'))),
       (select count(*) from generate_series(0, greatest(3, (
                select count(*) - 1 from pg_inherits
                where inhparent = 'cloud_sync.outbox'::regclass))) segment
            where to_regclass('cloud_sync.segment_' || segment) is null),
       to_regclass('cloud_sync.incarnation') is not null and to_regclass('cloud_sync.leader') is not null
           and to_regclass('cloud_sync.pause') is not null
