-- What was counted. `hour` is the window's hour of UTC, `period` the start of its billing period.
-- `scope` is empty for the tenant as a whole, else '<limit>:<value>'; only the empty one is billed.

-- One row per window and writer: cumulative, merged with max, never deleted. A journal found years later meets its own
-- row here and counts once; this row is the writer's high-water mark.
-- The key starts with the shard and the hour, so that one index serves the merge, the totals of a window and the restore
-- of a shard's recent hours. There is no foreign key to tenants: the merge introduces them, and a check per row costs too much.
create table usage_counters (
    shard int not null,
    hour timestamptz not null,
    tenant text collate "C" not null,
    metric text collate "C" not null,
    scope text collate "C" not null,
    period timestamptz not null,
    writer text collate "C" not null,
    amount bigint not null check (amount > 0),
    primary key (shard, hour, tenant, metric, scope, period, writer)
) partition by range (hour);
create table usage_counters_default partition of usage_counters default;

create table usage_windows (
    tenant text collate "C" not null,
    metric text collate "C" not null,
    scope text collate "C" not null,
    period timestamptz not null,
    hour timestamptz not null,
    amount bigint not null check (amount > 0),
    primary key (tenant, metric, scope, period, hour)
) partition by range (hour);
create table usage_windows_default partition of usage_windows default;

-- Makes the monthly partitions from the month before `around` to `months_ahead` after it, and returns how many are new.
-- Rows that the default partition already has of such a month move along. Security definer: flushers own nothing.
create function ensure_partitions(months_ahead int, around timestamptz) returns int
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    parent text;
    starts timestamp;
    name text;
    made int := 0;
begin
    if months_ahead not between 0 and 120 then
        raise exception 'months_ahead is %, not 0 to 120', months_ahead using errcode = '22023';
    end if;
    perform pg_advisory_xact_lock(hashtext('ensure_partitions'));
    foreach parent in array array['usage_counters', 'usage_windows'] loop
        for step in -1 .. months_ahead loop
            starts := date_trunc('month', around at time zone 'UTC') + make_interval(months => step);
            name := parent || to_char(starts, '"_"YYYY"_"MM');
            continue when to_regclass('public.' || quote_ident(name)) is not null;
            -- Counters are updated in place every few seconds: room on the page keeps that out of the index.
            execute format('create table %I (like %I including defaults including constraints) with (fillfactor = 70)',
                name, parent);
            execute format(
                'with moved as (delete from %I where hour >= %L and hour < %L returning *) insert into %I select * from moved',
                parent || '_default', starts at time zone 'UTC', (starts + interval '1 month') at time zone 'UTC', name);
            execute format('alter table %I attach partition %I for values from (%L) to (%L)',
                parent, name, starts at time zone 'UTC', (starts + interval '1 month') at time zone 'UTC');
            made := made + 1;
        end loop;
    end loop;
    return made;
end $$;

-- Usage reported later, by id; (tenant, id) is unique for good, which a partitioned table could only promise within a month.
create table usage_events (
    tenant text collate "C" not null references tenants (id),
    id text collate "C" not null check (octet_length(id) between 1 and 255),
    metric text collate "C" not null,
    period timestamptz not null,
    hour timestamptz not null,
    amount bigint not null,
    received timestamptz not null default ledger_now(),
    primary key (tenant, id)
);
create index usage_events_hour on usage_events (tenant, metric, hour);

create table usage_levels (
    tenant text collate "C" not null references tenants (id),
    metric text collate "C" not null,
    at timestamptz not null,
    amount bigint not null check (amount >= 0),
    primary key (tenant, metric, at)
);

create table usage_alerts (
    tenant text collate "C" not null references tenants (id),
    limit_name text collate "C" not null,
    period timestamptz not null,
    percent int not null check (percent > 0),
    used bigint not null,
    raised timestamptz not null default ledger_now(),
    delivered timestamptz,
    primary key (tenant, limit_name, period, percent)
);
