-- Resumable uploads. The bytes of an unfinished one are in <files>/.incoming/<id>; that file's lock is held by whoever
-- writes it, or changes its row here.

set local lock_timeout = '10s';

create table cloud_meta.uploads (
    id text collate "C" primary key,   -- 128 random bits, in hexadecimal
    site text not null,
    directory text not null,
    name text not null,                -- the file's name, made safe
    length bigint not null check (length >= 0),
    -- Bytes that are on disk. If the file is shorter, its length counts.
    received bigint not null default 0 check (received between 0 and length),
    -- The random name of the request that wrote the last of them: a hash state in memory is theirs only if it has the same.
    writer text,
    announced_hash text,               -- what the sender says that the content's hash is
    metadata text,                     -- as it was sent
    stored text,                       -- once complete: the name below <files>/<site>/<directory>/
    hash text,                         -- once complete
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index uploads_by_expiry on cloud_meta.uploads (expires_at);
