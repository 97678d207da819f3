-- What a role plants that may create objects in schema public: whatever a statement of ours could mean in the
-- place of PostgreSQL's own. Each planted object notes that it was called, if a session of the program or of
-- a writer called it.
create role mallory;
grant create on schema public to mallory;
create schema attack;
grant usage on schema attack to public;
create sequence attack.calls;
grant usage on sequence attack.calls to public;
create function attack.note(what text) returns boolean language plpgsql set search_path = pg_catalog as $$ begin
    if current_setting('application_name') like 'cloud-sync%' or current_setting('application_name') = 'writer' then
        perform nextval('attack.calls');
        raise log 'taken over by % in %', what, current_setting('application_name');
    end if;
    return true;
end $$;
set role mallory;
set search_path = pg_catalog;

-- Operators of all pairs of types, those that PostgreSQL has itself and those that only fit better.
do $$ declare
    types text[] := array['text', 'varchar', 'name', '"char"', 'bool', 'int2', 'int4', 'int8', 'oid', 'timestamptz', 'interval',
        'jsonb', 'bytea', 'regclass', 'xid8', 'tid', 'text[]', 'name[]', 'oid[]'];
    a text; b text; operator text;
begin
    foreach a in array types loop foreach b in array types loop
        execute format('create function public.same(%1$s, %2$s) returns boolean language plpgsql as %3$L', a, b,
            format('begin perform attack.note(%L); return null; end', 'operator of ' || a || ', ' || b));
        execute format('create function public.joined(%1$s, %2$s) returns text language plpgsql as %3$L', a, b,
            format('begin perform attack.note(%L); return null; end', 'operator of ' || a || ', ' || b));
        foreach operator in array array['=', '<>', '<', '>', '<=', '>=', '~~', '@>'] loop
            execute format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.same)', operator, a, b);
        end loop;
        foreach operator in array array['||', '->>', '->', '&', '#', '-', '+'] loop
            execute format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.joined)', operator, a, b);
        end loop;
    end loop; end loop;
end $$;

-- Functions of every name that the program uses, of none, one or two arguments. {names} comes from its
-- sources.
do $$ declare
    types text[] := array['text', 'varchar', 'name', 'int8', 'oid', 'int4', 'timestamptz', 'regclass', 'text[]'];
    called text; a text; b text;
    body text;
begin
    foreach called in array array[{names}] loop
        body := format('begin perform attack.note(%L); return null; end', 'function ' || called);
        execute format('create function public.%I() returns text language plpgsql as %L', called, body);
        foreach a in array types loop
            execute format('create function public.%I(%s) returns text language plpgsql as %L', called, a, body);
            foreach b in array types[:5] loop
                execute format('create function public.%I(%s, %s) returns text language plpgsql as %L', called, a, b, body);
            end loop;
        end loop;
    end loop;
end $$;

-- Views in the place of the catalogs.
do $$ declare relation name; begin
    for relation in select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace
        and relkind in ('r', 'v') and has_table_privilege(oid, 'select') loop
        begin
            execute format('create view public.%1$I as select r.* from pg_catalog.%1$I r where attack.note(%2$L)', relation, 'view ' || relation);
        exception when others then null;
        end;
    end loop;
end $$;

-- Types in the place of PostgreSQL's, and one of a column of the site's own, with casts.
create type public.text as enum ('taken');
create type public.int4 as enum ('taken');
create type public.int8 as enum ('taken');
create type public.name as enum ('taken');
create type public.jsonb as enum ('taken');
create type public.oid as enum ('taken');
create type public.regclass as enum ('taken');
create type public.mood as enum ('fine', 'bad');
create function public.told(public.mood) returns pg_catalog.text language plpgsql as
    $$ begin perform attack.note('cast to text'); return 'taken'; end $$;
create function public.json_of(public.mood) returns json language plpgsql as
    $$ begin perform attack.note('cast to json'); return '"taken"'; end $$;
create function public.felt(pg_catalog.text) returns public.mood language plpgsql as
    $$ begin perform attack.note('cast from text'); return 'bad'; end $$;
create cast (public.mood as pg_catalog.text) with function public.told(public.mood) as assignment;
create cast (public.mood as json) with function public.json_of(public.mood) as assignment;
create cast (pg_catalog.text as public.mood) with function public.felt(pg_catalog.text) as assignment;
reset role;
