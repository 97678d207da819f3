-- The capture function of one entity for one event: writes the statement's rows to the outbox, and wakes the replicator.
--
-- function    its name
-- common      what is done, and ends it, in the common case: the replicator is awake or gone, writers use one of the first two
--             slots, and rows can be packed; nothing where they never can
-- slots       one branch a slot, which inserts the query for (op, key, image) over the transition tables
-- settings    settings that the function pins, the search path among them; none where all that it does is written out
-- wake        the advisory lock that the replicator holds only while it sleeps
--
-- Runs as its owner, so that the application's role needs no right on the outbox. Whatever it names, operators too, says its
-- schema, since the search path is the writer's. Each expression that a one-row transaction evaluates beside its insert costs it
-- as much as two columns of the row do: hence the common case.
--
-- The state tells the slot, and in its lowest bit whether the replicator may sleep; only then the lock tells whether it
-- does. It is notified only while it sleeps: commits with a NOTIFY queue up behind one lock of the whole server. The shared
-- lock is given back at once: held to the commit, one long transaction would keep the replicator from ever sleeping. A
-- transaction that has notified cannot be prepared, so where prepared transactions are possible nobody notifies, and the
-- replicator polls.
--
-- A statement of the site must not fail because a column was dropped, renamed or changed its type. So key columns are
-- named without their table, within a query whose outer level offers nulls under the same names: a column that is gone
-- reads as null, which no key may be, and the replicator knows such a change for what it is. An entity's own condition
-- may name any column and fail in any way: there, and only there, a subtransaction catches it. Rows are packed only while
-- their columns are the ones that the function was made for: a packed row does not say their names.
create or replace function cloud_sync.{function}() returns trigger
language plpgsql security definer {settings} as $capture$
#variable_conflict use_column
declare
    state bigint;
begin
{common}    state := pg_catalog.pg_sequence_last_value('cloud_sync.slot'::pg_catalog.regclass);
{slots}
    if found and coalesce(state operator(pg_catalog.&) 1, 1) operator(pg_catalog.=) 1 then
        if pg_catalog.pg_try_advisory_lock_shared({wake}) then
            perform pg_catalog.pg_advisory_unlock_shared({wake});
        elsif pg_catalog.current_setting('max_prepared_transactions') operator(pg_catalog.=) '0' then
            perform pg_catalog.pg_notify('cloud_sync', '');
        end if;
    end if;
    return null;
end $capture$;
