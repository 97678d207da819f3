-- media: when a URL that holds for a time only is renewed.

set local lock_timeout = '5s';

alter table media
    add column url_renew_at timestamptz;       -- null if the URL holds for ever

create index media_url_renewal on media (url_renew_at) where url_renew_at is not null;
