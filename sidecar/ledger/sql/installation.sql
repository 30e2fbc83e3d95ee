-- name: record_shards
-- Records the number of shards at first use.
update installation set shards = $1 where shards is null;

-- name: installation
-- What is fixed at installation.
select ledger_id, shards from installation;

-- name: set_clock_ahead
-- Moves ledger_now() ahead of the server's clock.
update installation set clock_ahead = make_interval(secs => $1::bigint);

-- name: ensure_partitions
-- Makes the missing monthly partitions around an instant.
select ensure_partitions($1::int, to_timestamp($2::bigint));

-- name: drop_folded_partitions
-- Drops the partitions of months of which every counter was folded.
select drop_folded_partitions();

-- name: take_shard
-- Locks a shard until the transaction ends, or says that somebody else has it.
select pg_try_advisory_xact_lock($1::int, $2::int);

-- name: shard_state
-- How far a shard is, whether it is to be compared, and before which hour windows of it may be folded.
select epoch, generation, doubted, floor(extract(epoch from folded_before) / 3600)::bigint from shards where shard = $1;

-- name: shard_states
-- How far each shard is, whether it is to be compared, and what was lost of its leases.
select shard, epoch, generation, doubted, lease_units_lost + coalesce(
    (select sum(units)::bigint from lost_leases as l where l.shard = s.shard), 0)
from shards as s;

-- name: take_doubts
-- Waits for who else has just found this ledger older than Redis, until the transaction ends.
select pg_advisory_xact_lock(hashtext('shards.doubted'));

-- name: doubt_other_shards
-- Has every other shard compared with Redis and Stripe, too.
update shards set doubted = true where shard <> $1 and not doubted;

-- name: trust_shard
-- Records that a shard is being compared.
update shards set doubted = false where shard = $1 and doubted;

-- name: shards_pending
-- Shards with tenants or API keys that changed since they were projected.
select shard from tenants where rev > projected_rev
union
select shard from api_keys where rev > projected_rev;

-- name: raise_epoch
-- Raises a shard's epoch beyond what it was and beyond what the caller knows.
insert into shards as s (shard, epoch) values ($1, $2::bigint + 1)
on conflict (shard) do update set epoch = greatest(s.epoch, $2::bigint) + 1, updated = now()
returning epoch;

-- name: set_generation
-- Records the generation of Redis' data set that a shard works with.
insert into shards (shard, generation) values ($1, $2)
on conflict (shard) do update set generation = excluded.generation, updated = now();

-- name: count_lost_leases
-- Notes how many lease units Redis took back in generations of a shard. An older copy tells of fewer.
insert into lost_leases as l (shard, generation, units)
select $1, told.generation, told.units from unnest($2::text[], $3::bigint[]) as told (generation, units)
on conflict (shard, generation) do update set units = excluded.units where excluded.units > l.units;
