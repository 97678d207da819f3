-- The state of each file that a row names, and which rows name it. Whoever locks several files locks them in
-- the order of their paths.
--
-- The states are those of FileState in src/source/file_state.rs, and of the check constraint in the
-- migrations. A file that waits or fails is due at next_attempt; one that is missing, uploaded or refused is
-- looked at by the rescan, and when the watch sees it.

-- name: note_named
-- Notes files that rows name. $1 paths, $2 directories, $3 entities, $4 keys. Returns how many of the files
-- are new. A file that is known is locked, so that it is not forgotten before its reference is noted.
with named as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[]) n (path, directory, entity, key)),
noted as (
    insert into cloud_sync.media as m (path, directory)
    select distinct on (path) path, directory from named order by path
    on conflict (path) do update set named_at = now() where m.named_at < now() - interval '30 s'
    returning (xmax = 0) as is_new)
select count(*) filter (where is_new) from noted

-- name: note_references
-- Notes what the rows $1 (entities), $2 (keys) name now: $3 paths, $4 entities, $5 keys; and forgets what they
-- no longer name. Returns the files of which something was forgotten.
with named as (
    select distinct path, entity, key from unnest($3::text[], $4::text[], $5::text[]) n (path, entity, key)),
forgotten as (
    delete from cloud_sync.media_ref r
    using unnest($1::text[], $2::text[]) c (entity, key)
    where r.entity = c.entity and md5(r.key) = md5(c.key) and r.key = c.key
      and not exists (
        select from named n where n.path = r.path and n.entity = r.entity and n.key = r.key)
    returning r.path),
noted as (
    insert into cloud_sync.media_ref (path, entity, key)
    select path, entity, key from named
    on conflict do nothing)
select distinct path from forgotten

-- name: forget_unnamed_of
-- Forgets those of the files $1 that no row names any more. One that was uploaded is kept for a while: it may
-- have been renamed, and its content needs not be sent again.
with unnamed as (
    select path from cloud_sync.media m
    where path = any($1) and not exists (select from cloud_sync.media_ref r where r.path = m.path)
    order by path
    for update),
gone as (
    delete from cloud_sync.media
    where state <> 'uploaded' and path in (select path from unnamed))
update cloud_sync.media set named_at = now() where state = 'uploaded' and path in (select path from unnamed)

-- name: forget_all_references
-- Forgets what the rows of the entities $1 name.
delete from cloud_sync.media_ref where entity = any($1)

-- name: forget_purged
-- Forgets what the rows $1 (entities), $2 (keys) name, which are purged here and kept in the cloud: files that are
-- not there or cannot be sent. Those that wait are still sent.
delete from cloud_sync.media_ref r
using unnest($1::text[], $2::text[]) c (entity, key), cloud_sync.media m
where r.entity = c.entity and md5(r.key) = md5(c.key) and r.key = c.key
  and m.path = r.path and m.state in ('missing', 'refused', 'failing')
returning r.path

-- name: forget_unnamed
-- Forgets files that no row names. A name is noted before its reference: one that is younger stays.
delete from cloud_sync.media m
where m.named_at < now() - case when m.state = 'uploaded' then interval '1 hour' else interval '1 minute' end
  and not exists (select from cloud_sync.media_ref r where r.path = m.path)

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
-- Files that are due, without those of $1: at most $2 small ones and $3 large ones, of $4 bytes or more. A file
-- of unknown size counts as small. Of the small ones three in four are the newest, so that a slip that was just
-- scanned does not wait behind a backlog; the others are the oldest, so that each has its turn.
with small as (
    (select path from cloud_sync.media
     where state in ('waiting', 'failing') and next_attempt <= now() and path <> all($1)
       and coalesce(seen_size, 0) < $4::bigint
     order by next_attempt desc
     limit $2::bigint - $2 / 4)
    union
    (select path from cloud_sync.media
     where state in ('waiting', 'failing') and next_attempt <= now() and path <> all($1)
       and coalesce(seen_size, 0) < $4
     order by next_attempt
     limit $2 / 4 + 1)
    limit $2),
large as (
    select path from cloud_sync.media
    where state in ('waiting', 'failing') and next_attempt <= now() and path <> all($1) and seen_size >= $4
    order by next_attempt
    limit $3::bigint)
select path, directory, attempts, sent_as, size, hash, url, modified_us, changed_us, inode,
       uploaded_at is not null
from cloud_sync.media
where path in (select path from small union all select path from large)

-- name: next_due
-- Seconds until the next file is due, without those of $1, and those of $2 bytes or more.
select extract(epoch from min(next_attempt) - now())::float8
from cloud_sync.media
where state in ('waiting', 'failing') and path <> all($1) and ($2::bigint is null or coalesce(seen_size, 0) < $2)

-- name: lock
select from cloud_sync.media where path = any($1) order by path for no key update

-- name: defer
-- $1 paths   $2 states   $3 reasons   $4 seconds until the next attempt   $5 whether this one counts
-- $6 sizes, null if they are not known
update cloud_sync.media m
set state = f.state, error = f.error, attempts = m.attempts + f.counts::integer,
    next_attempt = now() + make_interval(secs => f.seconds), seen_size = coalesce(f.size, m.seen_size)
from unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::boolean[], $6::bigint[])
    f (path, state, error, seconds, counts, size)
where m.path = f.path

-- name: record_uploads
-- $1 paths   $2 sizes   $3 times of modification   $4 times of change   $5 inodes   $6 hashes   $7 URLs
-- $8 paths on the server   $9 when their URLs are renewed, in seconds since 1970
update cloud_sync.media m
set state = 'uploaded', size = f.size, seen_size = f.size, modified_us = f.modified_us,
    changed_us = f.changed_us, inode = f.inode, hash = f.hash, url = f.url, remote_path = f.remote_path,
    url_renew_at = to_timestamp(f.renew_at), error = null, uploaded_at = now(),
    -- That its address clashed again and again is not forgotten: see upload_again.
    attempts = case when m.sent_as is null then 0 else m.attempts end
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[],
            $8::text[], $9::float8[])
    f (path, size, modified_us, changed_us, inode, hash, url, remote_path, renew_at)
where m.path = f.path

-- name: record_stamps
-- Files whose content is the one that was uploaded, unless the cloud is to be asked for it since. $1 paths
-- $2 times of modification   $3 times of change
-- $4 inodes
update cloud_sync.media m
set state = 'uploaded', modified_us = f.modified_us, changed_us = f.changed_us, inode = f.inode, error = null,
    attempts = 0
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) f (path, modified_us, changed_us, inode)
where m.path = f.path and m.url is not null and m.uploaded_at is not null

-- name: of_known_size
-- Those of the files $1, of directories $2 and sizes $3, of which another one of the same size was uploaded to
-- the same directory.
select n.path
from unnest($1::text[], $2::text[], $3::bigint[]) n (path, directory, size)
where exists (
    select from cloud_sync.media m
    where m.size = n.size and m.directory = n.directory and m.path <> n.path and m.hash is not null)

-- name: part_clashing
-- Files of $1, and others, that have one URL but not one content. The later ones get names of their own.
with clash as (
    select m.path as later, o.path as earlier
    from cloud_sync.media m
    join cloud_sync.media o
        on md5(o.url) = md5(m.url) and o.url = m.url and o.path <> m.path and o.hash <> m.hash
    where m.path = any($1) and m.url is not null and o.url is not null
      and (o.path <> all($1) or o.path < m.path)),
renamed as (
    update cloud_sync.media m
    set sent_as = left(md5(m.path), 8) || '-' || regexp_replace(m.path, '^.*/', '')
    where m.path in (select later from clash) and m.sent_as is null)
select path from (select later from clash union select earlier from clash) c (path)

-- name: upload_again
-- Makes the files $1 due, which clash: at once the first time, less and less often if other names did not help.
update cloud_sync.media
set state = case when attempts = 0 then 'waiting' else 'failing' end, url = null, remote_path = null,
    next_attempt = now() + make_interval(secs => case when attempts = 0 then 0 else least(10 * 2 ^ least(attempts, 9), 3600) end),
    attempts = attempts + 1, error = 'the cloud gave it the address of another file'
where path = any($1)

-- name: upload_all_again
-- Another cloud has none of the files: what the one before had of them no longer counts, whatever their state
-- is. Those that can be sent are due.
with late as (
    select path from cloud_sync.media
    where state in ('uploaded', 'waiting', 'failing') or url is not null or hash is not null
    order by path
    for no key update)
update cloud_sync.media
set state = case when state in ('uploaded', 'failing') then 'waiting' else state end,
    url = null, remote_path = null, hash = null, uploaded_at = null, upload_url = null, attempts = 0,
    next_attempt = now()
where path in (select path from late)

-- name: ask_again
-- Has the cloud asked whether it still has what is recorded of the files that rows of the entities $1 name;
-- of all files if $1 is null. Their URLs hold until it answers. $2 the reason.
with late as (
    select path from cloud_sync.media m
    where state in ('uploaded', 'waiting', 'failing') and url is not null and hash is not null
      and ($1::text[] is null
        or exists (select from cloud_sync.media_ref r where r.path = m.path and r.entity = any($1)))
    order by path
    for no key update)
update cloud_sync.media
set state = 'waiting', uploaded_at = null, attempts = 0, next_attempt = now(), error = $2
where path in (select path from late)

-- name: renew_urls
-- Has the cloud asked for a newer URL of files whose URL ends, at most $2 of them, the first to end first. $1 the
-- reason. Their URLs hold until it answers. Returns how many.
with late as (
    select path from cloud_sync.media
    where url_renew_at <= now() and state = 'uploaded' and hash is not null
    order by url_renew_at
    limit $2::bigint),
locked as (
    select path from cloud_sync.media where path in (select path from late) order by path for no key update)
update cloud_sync.media
set state = 'waiting', uploaded_at = null, attempts = 0, next_attempt = now(), error = $1
where path in (select path from locked)

-- name: confirm
-- The cloud still has what is recorded. $1 paths   $2 hashes   $3 URLs   $4 whether the file looks otherwise
-- now: it is due then.   $5 when their URLs are renewed, in seconds since 1970. Returns the files that had another
-- URL. A file whose record was cleared since is left out.
with before as (
    select path, hash, url from cloud_sync.media where path = any($1) order by path for no key update),
confirmed as (
    update cloud_sync.media m
    set state = case when f.changed then 'waiting' else 'uploaded' end, url = f.url,
        remote_path = case when f.url = m.url then m.remote_path end, url_renew_at = to_timestamp(f.renew_at),
        uploaded_at = now(), error = null,
        attempts = case when m.sent_as is null then 0 else m.attempts end, next_attempt = now()
    from unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::float8[]) f (path, hash, url, changed, renew_at)
    where m.path = f.path and m.hash = f.hash and m.url is not null)
select b.path
from before b
join unnest($1::text[], $2::text[], $3::text[]) f (path, hash, url) on b.path = f.path
where b.hash = f.hash and b.url <> f.url

-- name: forget_content
-- The cloud no longer has what is recorded of the files $1, whose hashes were $2: they are due.
update cloud_sync.media m
set state = 'waiting', url = null, remote_path = null, hash = null, error = null, attempts = 0,
    next_attempt = now()
from unnest($1::text[], $2::text[]) f (path, hash)
where m.path = f.path and m.hash = f.hash

-- name: known
-- State and stamp of those of the files $1 that are known.
select path, state, size, modified_us, changed_us, inode from cloud_sync.media where path = any($1)

-- name: known_after
-- The same of files whose paths come after $1, in order; at most $2.
select path, state, size, modified_us, changed_us, inode
from cloud_sync.media
where path > $1
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
-- Makes every file due that waits or fails; those that were refused only if $1.
with late as (
    select path from cloud_sync.media
    where state in ('waiting', 'failing') or ($1 and state = 'refused')
    order by path
    for no key update)
update cloud_sync.media set state = 'waiting', next_attempt = now() where path in (select path from late)

-- name: counts
-- For each state: files, their bytes, how many are due in a moment or wait for the reason $1, the first of their
-- paths, how many bytes are still to be sent of those whose size is known and that do not wait for one of the
-- reasons $2, and how many there are of these and of such files of unknown size.
select state, count(*), coalesce(sum(size), 0)::bigint,
       count(*) filter (where next_attempt <= now() + interval '3 s' or error = $1), min(path),
       coalesce(sum(greatest(seen_size - coalesce(upload_offset, 0), 0)) filter (where is_to_send), 0)::bigint,
       count(seen_size) filter (where is_to_send),
       count(*) filter (where is_to_send and seen_size is null)
from cloud_sync.media,
     lateral (select state in ('waiting', 'failing') and (error is null or error <> all($2))) w (is_to_send)
group by state

-- name: not_taken
-- Files that are missing, that the cloud does not take or that cannot be sent, without those that wait for one of
-- the reasons $2; at most $1.
select path, coalesce(error, 'refused')
from cloud_sync.media
where state in ('missing', 'failing', 'refused')
   or (state = 'waiting' and error <> all($2) and next_attempt > now() + interval '3 s')
order by path
limit $1

-- name: list
-- Files in one of the states $1 whose paths come after $2, in order; at most $3. $4 one path, or null for all.
select path, directory, state, coalesce(seen_size, size), hash, url, error, attempts,
       case when state in ('waiting', 'failing')
            then greatest(extract(epoch from next_attempt - now()), 0)::float8 end,
       extract(epoch from uploaded_at)::float8, upload_offset, upload_size, upload_rate,
       extract(epoch from now() - upload_noted_at)::float8, upload_url is not null
from cloud_sync.media
where state = any($1) and path > $2 and ($4::text is null or path = $4)
order by path
limit $3
