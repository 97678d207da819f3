-- Uploads in parts that are in progress: where each is in the cloud, how far it has come, and how the file
-- looked for which that holds.

-- name: note
-- $1 paths   $2 addresses   $3 offsets   $4 sizes   $5 times of modification   $6 times of change   $7 inodes
-- $8 hashes   $9 bytes a second, null if they are not known   $10 the parts that an object storage has, as a
-- JSON array each; null at the cloud's API
with late as (
    select path from cloud_sync.media where path = any($1) order by path for no key update)
update cloud_sync.media m
set upload_url = u.url, upload_offset = u.at_byte, upload_size = u.size, upload_modified_us = u.modified_us,
    upload_changed_us = u.changed_us, upload_inode = u.inode, upload_hash = u.hash, upload_rate = u.rate,
    upload_parts = (select array_agg(part order by number)
                    from json_array_elements_text(u.parts::json) with ordinality p (part, number)),
    upload_noted_at = now()
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
            $8::text[], $9::bigint[], $10::text[])
    u (path, url, at_byte, size, modified_us, changed_us, inode, hash, rate, parts)
where m.path = u.path and m.path in (select path from late)

-- name: in_progress
-- The uploads of those of the files $1 that have one.
select path, upload_url, upload_offset, upload_size, upload_modified_us, upload_changed_us, upload_inode, upload_hash,
       upload_parts
from cloud_sync.media
where path = any($1) and upload_url is not null

-- name: forget
-- The uploads of the files $1 have ended.
update cloud_sync.media
set upload_url = null, upload_offset = null, upload_size = null, upload_modified_us = null,
    upload_changed_us = null, upload_inode = null, upload_hash = null, upload_rate = null, upload_parts = null,
    upload_noted_at = null
where path = any($1) and upload_url is not null
