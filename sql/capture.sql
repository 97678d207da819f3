-- The capture function of one entity for one event: writes a touch for each row that the statement wrote, and wakes the
-- replicator where it sleeps.
--
-- function    its name
-- settings    settings that the function pins; none where the key's text depends on no setting
-- branches    the insert of the touches, by the segment that writers use
--
-- Runs as its owner, so that the application's role needs no right on the outbox. Whatever it names, operators too, says its
-- schema, since the search path is the writer's. It evaluates no value of a row but its key, as text: the key type's own
-- operators, casts of the site and conditions never run in a writer's transaction.
--
-- The state tells the segment, and until when the replicator sleeps; 0 and 1 are the common case: it is awake, or nobody
-- is there. It is notified only while it sleeps: commits with a NOTIFY queue up behind one lock of the whole server.
--
-- A statement of the site must not fail because a key column was dropped, renamed or changed its type. So key columns are named
-- without their table, within a query whose outer level offers nulls under the same names: a column that is gone reads as null,
-- which no key may be, and the replicator knows such a touch for what it is.
create or replace function cloud_sync.{function}() returns trigger
language plpgsql security definer {settings} as $capture$
#variable_conflict use_column
declare
    state bigint := pg_catalog.pg_sequence_last_value('cloud_sync.state'::pg_catalog.regclass);
begin
{branches}
    if state operator(pg_catalog.>) 65535 then
        perform cloud_sync.notify_sleeper(state operator(pg_catalog.>>) 16);
    end if;
    return null;
end $capture$;
