-- In a split brain two flushers pass over a shard in turns, each at its own server. What one server had told of lost leases
-- must not count again because the other one has told of less since.
alter table shards
    add column lease_units_told_in text not null default '',
    add column lease_units_told_before bigint not null default 0,
    add column lease_units_told_before_in text not null default '';
comment on column shards.lease_units_told_in is 'The generation that told of lease_units_told.';
comment on column shards.lease_units_told_before is 'How many another data set had counted, which told before that one.';
comment on column shards.lease_units_told_before_in is 'Its generation.';
