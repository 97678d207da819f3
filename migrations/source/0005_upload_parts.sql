-- media: what an object storage calls the parts of an upload that are there.

set local lock_timeout = '5s';

alter table media
    add column upload_parts text[];            -- in order; null if the cloud's API takes the upload
