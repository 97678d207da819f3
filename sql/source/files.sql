-- The state of each file that a row names, and which rows name it. Whoever locks several files locks them in
-- the order of their paths.

-- name: note_named
-- Notes files that rows name. $1 paths, $2 directories, $3 entities, $4 keys. Returns how many of the files
-- are new.
with named as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[]) n (path, directory, entity, key)),
fresh as (
    insert into cloud_sync.media (path, directory)
    select distinct on (path) path, directory from named
    on conflict do nothing
    returning 1)
select count(*) from fresh

-- name: note_references
-- Notes which rows name which files. $1 paths   $2 entities   $3 keys
insert into cloud_sync.media_ref (path, entity, key)
select distinct path, entity, key
from unnest($1::text[], $2::text[], $3::text[]) n (path, entity, key)
on conflict do nothing

-- name: references
-- The rows that name one of the files $1.
select distinct entity, key from cloud_sync.media_ref where path = any($1)

-- name: urls
-- The URLs of those of the files $1 that have one.
select path, url, remote_path from cloud_sync.media where path = any($1) and url is not null

-- name: settled_urls
-- The same, after every transaction that is recording one of these files has ended; null if a file has none.
select path, url, remote_path from cloud_sync.media where path = any($1) order by path for share

-- name: due
-- Files that are due, without those of $1; at most $2.
select path, directory, attempts, sent_as
from cloud_sync.media
where state in ('waiting', 'failing', 'missing') and next_attempt <= now() and path <> all($1)
order by next_attempt
limit $2

-- name: next_due
-- Seconds until the next file is due, without those of $1.
select extract(epoch from min(next_attempt) - now())::float8
from cloud_sync.media
where state in ('waiting', 'failing', 'missing') and path <> all($1)

-- name: lock
select from cloud_sync.media where path = any($1) order by path for no key update

-- name: defer
-- $1 paths   $2 states   $3 reasons   $4 seconds until the next attempt   $5 whether this one counts
update cloud_sync.media m
set state = f.state, error = f.error, attempts = m.attempts + f.counts::integer,
    next_attempt = now() + make_interval(secs => f.seconds)
from unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::boolean[])
    f (path, state, error, seconds, counts)
where m.path = f.path

-- name: record_uploads
-- $1 paths   $2 sizes   $3 times of modification   $4 hashes   $5 URLs   $6 paths on the server
update cloud_sync.media m
set state = 'uploaded', size = f.size, modified_us = f.modified_us, hash = f.hash,
    url = f.url, remote_path = f.remote_path, error = null, attempts = 0, uploaded_at = now()
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[])
    f (path, size, modified_us, hash, url, remote_path)
where m.path = f.path

-- name: part_clashing
-- Files of $1, and others, that have one URL but not one content. The later ones get names of their own.
with clash as (
    select m.path as later, o.path as earlier
    from cloud_sync.media m
    join cloud_sync.media o
        on md5(o.url) = md5(m.url) and o.url = m.url and o.path <> m.path and o.hash <> m.hash
    where m.path = any($1) and m.state = 'uploaded' and o.state = 'uploaded'
      and (o.path <> all($1) or o.path < m.path)),
renamed as (
    update cloud_sync.media m
    set sent_as = left(md5(m.path), 8) || '-' || regexp_replace(m.path, '^.*/', '')
    where m.path in (select later from clash) and m.sent_as is null)
select path from (select later from clash union select earlier from clash) c (path)

-- name: upload_again
-- Makes the files $1 due, which clash.
update cloud_sync.media
set state = 'waiting', url = null, remote_path = null, next_attempt = now(),
    error = 'the cloud gave it the address of another file'
where path = any($1)

-- name: upload_all_again
-- Makes every uploaded file due: another cloud has none of them.
with late as (
    select path from cloud_sync.media where state = 'uploaded' order by path for no key update)
update cloud_sync.media
set state = 'waiting', url = null, hash = null, attempts = 0, next_attempt = now()
where path in (select path from late)

-- name: known
-- State and stamp of those of the files $1 that are known.
select path, state, size, modified_us from cloud_sync.media where path = any($1)

-- name: uploaded_after
-- Uploaded files whose paths come after $1, in order; at most $2.
select path, state, size, modified_us
from cloud_sync.media
where path > $1 and state = 'uploaded'
order by path
limit $2

-- name: make_due
-- Makes the files $1 due in $2 seconds.
with seen as (
    select path from cloud_sync.media where path = any($1) order by path for no key update)
update cloud_sync.media
set state = 'waiting', attempts = 0, next_attempt = now() + make_interval(secs => $2)
where path in (select path from seen)

-- name: make_all_due
-- Makes every file due that is not uploaded; those that were refused only if $1.
with late as (
    select path from cloud_sync.media
    where state in ('waiting', 'failing', 'missing') or ($1 and state = 'refused')
    order by path
    for no key update)
update cloud_sync.media set state = 'waiting', next_attempt = now() where path in (select path from late)

-- name: counts
-- For each state: files, their bytes, and how many are due in a moment or wait for the reason $1.
select state, count(*), coalesce(sum(size), 0)::bigint,
       count(*) filter (where next_attempt <= now() + interval '3 s' or error = $1)
from cloud_sync.media
group by state

-- name: not_taken
-- Files that the cloud does not take or that cannot be sent, without those that wait for one of the reasons
-- $2; at most $1.
select path, coalesce(error, 'refused')
from cloud_sync.media
where state in ('failing', 'refused')
   or (state = 'waiting' and error <> all($2) and next_attempt > now() + interval '3 s')
order by path
limit $1
