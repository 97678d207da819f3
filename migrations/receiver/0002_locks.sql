-- Locks that only this database's owner of schema cloud_meta can take: any role may hold an advisory lock for
-- ever, and nothing would be applied meanwhile.

-- One row a lock: a site's, and the one of all tables.
create table cloud_meta.locks (name text collate "C" primary key);

-- Takes the lock until the transaction ends.
create function cloud_meta.take_lock(lock text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform from cloud_meta.locks l where l.name = take_lock.lock for update;
    if not found then
        insert into cloud_meta.locks values (take_lock.lock) on conflict do nothing;
        perform from cloud_meta.locks l where l.name = take_lock.lock for update;
    end if;
end $$;
