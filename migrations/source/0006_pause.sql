-- pause: what an operator has paused, until somebody resumes it. Capture goes on. A paused entity is parked: its touches are
-- kept in parked_key.

set local lock_timeout = '5s';

create table pause (
    scope     text        not null check (scope in ('all', 'files', 'entity')),
    entity    text        not null default '',   -- the entity's name; empty for the other scopes
    paused_at timestamptz not null default now(),
    paused_by text        not null,
    primary key (scope, entity)
);
