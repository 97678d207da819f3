-- The tables of a workload of every kind, in addition to those of pots: each shows one thing that a transaction can do to its rows.

-- Triggers of the site's own. They update the row that fired them, another row and other tables; some come before the triggers
-- of capture in the order of names, others after them.
create table item (
    id int primary key,
    title text,
    slug text,
    revision int not null default 0,
    neighbour int not null default 0,
    seen int not null default 0,
    settled int not null default 0
);
create table item_log (id int primary key, title text, events int not null default 1);
create table total (name text primary key, count bigint not null default 1);

create function item_before() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        return case when old.revision % 17 <> 13 then old end;
    end if;
    if new.title like 'skip%' then
        return null;
    end if;
    new.title := upper(new.title);
    return new;
end $$;
create trigger a_before before insert or update or delete on item for each row execute function item_before();

create function item_slug() returns trigger language plpgsql as $$
begin
    update item set slug = lower(new.title) || '-' || new.id where id = new.id;
    return null;
end $$;
create trigger a_slug after insert on item for each row execute function item_slug();

create function item_revision() returns trigger language plpgsql as $$
begin
    if pg_trigger_depth() = 1 then
        update item set revision = revision + 1 where id = new.id;
    end if;
    return null;
end $$;
create trigger z_revision after update on item for each row execute function item_revision();

create function item_neighbour() returns trigger language plpgsql as $$
begin
    if pg_trigger_depth() = 1 then
        update item set neighbour = neighbour + 1 where id = new.id + 1;
    end if;
    return null;
end $$;
create trigger a_neighbour after update on item for each row execute function item_neighbour();

create function item_log() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' then
        delete from item_log where id = old.id;
    else
        insert into item_log values (new.id, new.title)
            on conflict (id) do update set title = excluded.title, events = item_log.events + 1;
    end if;
    return null;
end $$;
create trigger z_log after insert or update or delete on item for each row execute function item_log();

-- One of many rows, so that writers seldom wait for each other.
create function item_total() returns trigger language plpgsql as $$
begin
    insert into total values (tg_name || (random() * 40)::int)
        on conflict (name) do update set count = total.count + 1;
    return null;
end $$;
create trigger a_total after insert or update or delete on item for each statement execute function item_total();
create trigger z_total after insert or update or delete on item for each statement execute function item_total();

create function item_seen() returns trigger language plpgsql as $$
begin
    if pg_trigger_depth() = 1 then
        update item set seen = seen + 1
            where id = (select id from item where id >= (random() * 120)::int order by id limit 1 for update skip locked);
    end if;
    return null;
end $$;
create trigger a_seen after insert or update on item for each statement execute function item_seen();
create trigger z_seen after update or delete on item for each statement execute function item_seen();

create function item_settled() returns trigger language plpgsql as $$
begin
    update item set settled = settled + 1 where id = new.id;
    return null;
end $$;
create constraint trigger settled after insert or update on item deferrable initially deferred
    for each row when (new.settled < 2) execute function item_settled();

create function item_seed() returns trigger language plpgsql as $$
begin
    insert into item (id, title) values (0, 'seed');
    return null;
end $$;
create trigger a_seed after truncate on item for each statement execute function item_seed();

-- Keys that two rows may share until the statement or the transaction ends. A row is known by its mark.
create table place (
    id int primary key deferrable initially deferred,
    code int not null unique deferrable initially deferred,
    mark bigint not null generated always as identity,
    note text
);
create table seat (
    id int primary key deferrable,
    mark bigint not null generated always as identity,
    note text
);
create table desk (
    number int not null unique deferrable initially deferred,
    mark bigint not null generated always as identity,
    note text
);

-- Keys that cascade over two levels.
create table region (id int primary key, name text);
create table town (
    region int not null references region on update cascade on delete cascade,
    id int not null,
    name text,
    primary key (region, id)
);
create table street (
    region int not null,
    town int not null,
    nth int not null,
    name text,
    primary key (region, town, nth),
    foreign key (region, town) references town on update cascade on delete cascade
);
create table person (
    id int primary key,
    region int,
    town int,
    name text,
    foreign key (region, town) references town on update cascade on delete set null
);

-- Statements of many kinds on one plain table.
create table stock (id int primary key, amount int not null default 0, note text);

-- Partitions, one of them partitioned again.
create table event (id int, day int, note text, primary key (id, day)) partition by range (day);
create table event_low partition of event for values from (0) to (20);
create table event_high partition of event for values from (20) to (40) partition by hash (id);
create table event_high_0 partition of event_high for values with (modulus 2, remainder 0);
create table event_high_1 partition of event_high for values with (modulus 2, remainder 1);
create table event_rest partition of event default;

-- A table whose definition changes while it is written.
create table draft (id int primary key, memo text, amount int not null default 0);
