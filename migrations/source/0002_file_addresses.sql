-- media: the path that the cloud's server gave a file beside its URL; the name it is sent under, where its own name is another
-- file's too on that server; and files that the cloud fails to take while it takes others.

set local lock_timeout = '5s';

alter table media add column remote_path text, add column sent_as text;

alter table media drop constraint media_state_check;
alter table media add constraint media_state_check
    check (state in ('waiting', 'failing', 'missing', 'uploaded', 'refused'));

drop index media_waiting;
create index media_waiting on media (next_attempt) where state in ('waiting', 'failing', 'missing');
create index media_url on media (md5(url)) where url is not null;
