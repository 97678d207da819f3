-- The key that signs the URLs of files, where they hold for a time only. All receivers on one database share it.

set local lock_timeout = '10s';

alter table cloud_meta.receiver
    add column url_key bytea not null default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
