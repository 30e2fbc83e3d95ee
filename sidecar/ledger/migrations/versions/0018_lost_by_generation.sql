-- Lease units that Redis took back from writers it had not heard of for too long, by the generation in which it did. A
-- generation is of one server, and its number only grows: whatever is told again, or by an older copy, or by both sides of
-- a split brain in turns, the highest number of each counts, and their sum is each unit once.
create table lost_leases (
    shard int not null,
    generation text collate "C" not null,
    units bigint not null,
    primary key (shard, generation)
);
comment on column shards.lease_units_lost is 'Those that were counted before migration 0018; the others are in lost_leases.';
comment on column shards.lease_units_told is 'Of flushers before migration 0018.';
alter table lost_leases enable row level security;
alter table lost_leases force row level security;
grant select, insert, update on lost_leases to sidecar_flusher;
grant select on lost_leases to sidecar_control;
grant select, insert, update, delete on lost_leases to sidecar_admin;
create policy admin_all on lost_leases to sidecar_admin using (true) with check (true);
create policy sidecar_flusher_all on lost_leases to sidecar_flusher using (true) with check (true);
create policy sidecar_control_all on lost_leases to sidecar_control using (true) with check (true);
