-- media: how a file looked beyond its size and time; its size when it was last seen; when a row last named it.
-- media_ref: found by its row, so that what the row no longer names is forgotten.

set local lock_timeout = '5s';

alter table media
    add column changed_us bigint,                                  -- microseconds since 1970: ctime
    add column inode      bigint,
    add column seen_size  bigint,                                  -- bytes; null if it was never looked at
    add column named_at   timestamptz not null default now();

create index media_ref_by_row on media_ref (entity, md5(key));
create index media_size on media (size) where hash is not null;
