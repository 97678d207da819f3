-- The outbox itself never has a row. Its index lets the planner merge the slots by theirs, with no sort in between.
create index outbox_position on outbox (position);
