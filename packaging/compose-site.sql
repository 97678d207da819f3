-- A table of the example site. Write to it, and look at the cloud:
--   docker compose -f packaging/compose.yaml exec site-database psql -U school -c "insert into note (text) values ('one')"
--   docker compose -f packaging/compose.yaml exec cloud-database psql -U cloud -c 'select * from cloud.note'
create table note (id bigint generated always as identity primary key, text text not null, at timestamptz default now());
