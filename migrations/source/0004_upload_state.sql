-- media: an upload in parts that is under way, so that any replicator of this database goes on with it. What
-- is due is found without the files that are missing.

set local lock_timeout = '5s';

alter table media
    add column upload_url         text,         -- its address in the cloud; null if no upload is under way
    add column upload_offset      bigint,       -- bytes that the cloud had when it was noted
    add column upload_size        bigint,       -- how the file looked for which it holds
    add column upload_modified_us bigint,
    add column upload_changed_us  bigint,
    add column upload_inode       bigint,
    add column upload_hash        text,         -- blake3 of the whole content, hexadecimal
    add column upload_rate        bigint,       -- bytes a second, of late; null if it is not known yet
    add column upload_noted_at    timestamptz;

drop index media_waiting;
create index media_due on media (next_attempt) where state in ('waiting', 'failing');
