-- Lease units that Redis took back from writers it had not heard of for too long: the one way past a hard cap. Kept here,
-- because every flusher sees Redis' number, and each unit is to be counted once.
alter table shards
    add column lease_units_lost bigint not null default 0,
    add column lease_units_told bigint not null default 0;
comment on column shards.lease_units_told is 'How many Redis had counted when they were added up last, in this generation.';
