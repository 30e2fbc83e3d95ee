-- A ledger that was restored from a backup is older than Stripe and Redis in all of its shards, but only those that Redis
-- has seen grow since show it by their epoch. The first one that is found has all others compared, too.
alter table shards add column doubted boolean not null default false;
comment on column shards.doubted is 'To be compared with Redis and Stripe whatever its epoch says, since another shard showed that the ledger is older.';
