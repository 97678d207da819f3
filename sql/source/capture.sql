-- The capture of one entity: a function and a trigger for each event. The function writes a touch for each
-- row that the statement wrote, and wakes the replicator if it sleeps.
--
-- It runs as its owner, so that the application's role needs no right on the outbox. Whatever it names,
-- operators too, says its schema, since the search path is the writer's. It evaluates no value of a row but
-- its key, as text: the key type's own operators, casts of the site and conditions never run in a writer's
-- transaction.
--
-- Whoever changes what is generated here raises CAPTURE_VERSION in src/source/capture.rs: `init` and a running
-- replicator then re-create it.
--
-- The state tells the segment, and until when the replicator sleeps; 0 and 1 are the common case: the
-- replicator is awake, or there is none. It is notified only while it sleeps: commits with a NOTIFY queue up
-- behind one lock of the whole server.
--
-- A statement of the site must not fail because a key column was dropped, renamed or changed its type. So key
-- columns are named without their table, within a query whose outer level offers nulls under the same names:
-- a column that is gone reads as null, which no key may be, and the replicator knows what such a touch means.

-- part: function
-- {function} its name, {settings} the settings that it pins (none if the key's text depends on no setting),
-- {branches} the insert of the touches, by the segment that writers use
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

-- part: branch_awake
-- The branch of a segment while the replicator does not sleep. {keyword} if, elsif
    {keyword} state operator(pg_catalog.=) {segment} then
        {insert};
        return null;

-- part: branch_asleep
-- The branch of a segment while the replicator may sleep.
    elsif state operator(pg_catalog.&) 65535 operator(pg_catalog.=) {segment} then
        {insert};

-- part: branch_others
-- The last branch: {further} inserts into a segment that has no branch of its own.
    else
        {further};
    end if;

-- part: planned_insert
-- An insert that is planned each time. {insert} is a text with # in the place of the segment
execute pg_catalog.replace({insert}, '#', (state operator(pg_catalog.&) 65535)::pg_catalog.text)

-- part: insert
-- Writes the touches to a segment. {rows} returns them as op, number and key
insert into cloud_sync.segment_{segment} (entity, op, number, key)
        select {id}, t.op, t.number, t.key from ({rows}) t

-- part: truncate
-- The touch of a truncate. It is not known which rows a truncated partition had.
select case when tg_nargs operator(pg_catalog.=) 0 then 't' else 'g' end::pg_catalog."char" as op,
    null::pg_catalog.int8 as number, null::pg_catalog.text as key

-- part: touches
-- The touches of the rows of {from}, below a query that offers nulls under the names of the key columns
-- ({offered}).
select ({op})::pg_catalog."char" as op, r.number, r.key
from ({offered}) offered,
    lateral (select {number} as number, {key} as key from ({from}) cloud_sync_row{condition}) r

-- part: not_among
-- The condition that a row's key is none of those of {from}. {keys} their columns as texts, {same} their
-- comparison
where not exists (select from (select {keys} from ({from}) cloud_sync_row) k where {same})

-- part: key_is_of_type
-- Whether a key column is of a type now. It is asked when the statement runs: after the type has changed, the
-- text is no integer.
pg_catalog.pg_typeof({column})::pg_catalog.oid operator(pg_catalog.{operator}) {oid}::pg_catalog.oid

-- part: trigger
-- {when} and {each} say when it fires, {referencing} its transition tables, {enabled} whether replicated rows
-- fire it. {argument} tells a partition's, whose truncate is not the entity's
create or replace trigger {trigger} {when} on {table} {referencing} for each {each}
execute function cloud_sync.{function}({argument});
alter table {table} enable {enabled} trigger {trigger};
