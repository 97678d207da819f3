-- traffic: how many bytes left the site, by the site's local date. It is written while there is a budget
-- (files.budget).

set local lock_timeout = '5s';

create table traffic (
    day   date   primary key,
    bytes bigint not null
);
