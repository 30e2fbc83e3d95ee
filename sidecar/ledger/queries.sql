-- Every query of the ledger: a name, then a sentence, then the query. Times go in and out as whole unix seconds, windows as
-- unix seconds // 3600.

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

-- name: take_shard
-- Locks a shard until the transaction ends, or says that somebody else has it.
select pg_try_advisory_xact_lock($1::int, $2::int);

-- name: shard_state
-- How far a shard is.
select epoch, generation from shards where shard = $1;

-- name: shard_epochs
-- How far each shard is.
select shard, epoch from shards;

-- name: raise_epoch
-- Raises a shard's epoch beyond what it was and beyond what the caller knows.
insert into shards as s (shard, epoch) values ($1, $2::bigint + 1)
on conflict (shard) do update set epoch = greatest(s.epoch, $2::bigint) + 1, updated = now()
returning epoch;

-- name: set_generation
-- Records the generation of Redis' data set that a shard works with.
insert into shards (shard, generation) values ($1, $2)
on conflict (shard) do update set generation = excluded.generation, updated = now();

-- name: introduce_tenants
-- Makes a tenant of every id that was counted before anybody put it.
insert into tenants (id, plan, origin, shard)
select id, $2, 'introduced', $3
from unnest($1::text[]) as id
where not exists (select from tenants as t where t.id = id.id collate "C")
on conflict (id) do nothing;

-- name: merge_counters
-- Merges counters with max and sets the totals of the windows that grew; the caller holds the shard, so what it reads stays.
with incoming as materialized (
    select i.tenant collate "C" as tenant, i.metric collate "C" as metric, i.scope collate "C" as scope,
        to_timestamp(i.period_s) as period, to_timestamp(i.hour * 3600) as hour, i.writer collate "C" as writer,
        max(i.amount) as amount
    from unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::bigint[])
        as i (tenant, metric, scope, period_s, hour, writer, amount)
    where i.amount <> 0
    group by 1, 2, 3, 4, 5, 6
    order by 5, 1, 2, 3, 4, 6
), grown as (
    insert into usage_counters as c (shard, hour, tenant, metric, scope, period, writer, amount)
    select $1::int, hour, tenant, metric, scope, period, writer, amount from incoming
    on conflict (shard, hour, tenant, metric, scope, period, writer) do update set amount = excluded.amount
        where c.amount < excluded.amount
    returning c.hour, c.tenant, c.metric, c.scope, c.period, c.writer, c.amount
), touched as (
    select distinct hour, tenant, metric, scope, period from grown
), parts as materialized (
    -- The statement sees the counters as they were before it; of each writer the larger one is the newer one.
    select hour, tenant, metric, scope, period, writer, max(amount) as amount
    from (
        select hour, tenant, metric, scope, period, writer, amount from grown
        union all
        select t.hour, t.tenant, t.metric, t.scope, t.period, c.writer, c.amount
        from touched as t
        cross join lateral (
            select c.writer, c.amount from usage_counters as c
            where c.shard = $1::int and c.hour = t.hour and c.tenant = t.tenant and c.metric = t.metric
                and c.scope = t.scope and c.period = t.period
            offset 0
        ) as c
    ) as known
    group by hour, tenant, metric, scope, period, writer
), totals as (
    insert into usage_windows as w (tenant, metric, scope, period, hour, amount)
    select tenant, metric, scope, period, hour, least(sum(amount), 9223372036854775807)::bigint
    from parts group by tenant, metric, scope, period, hour
    on conflict (tenant, metric, scope, period, hour) do update set amount = greatest(w.amount, excluded.amount)
)
select count(*) from grown;

-- name: recent_counters
-- Every counter of a shard's windows since an hour, by hour.
select tenant, metric, scope, extract(epoch from period)::bigint, extract(epoch from hour)::bigint / 3600, writer, amount
from usage_counters
where shard = $1 and hour >= to_timestamp($2::bigint * 3600)
order by hour;

-- name: span_totals
-- Sums the windows of many spans: one row for a tenant as a whole, one per scope of a scoped limit.
select (s.ordinality - 1)::int as index, u.scope, u.amount
from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[]) with ordinality
    as s (tenant, metric, limit_name, from_hour, before_hour, period_s, ordinality)
cross join lateral (
    select '' as scope, coalesce(sum(w.amount), 0)::bigint as amount
    from usage_windows as w
    where s.limit_name = '' and w.tenant = s.tenant collate "C" and w.metric = s.metric collate "C" and w.scope = ''
        and w.hour >= to_timestamp(s.from_hour * 3600) and w.hour < to_timestamp(s.before_hour * 3600)
        and (s.period_s is null or w.period = to_timestamp(s.period_s))
    having s.limit_name = ''
    union all
    select w.scope, sum(w.amount)::bigint
    from usage_windows as w
    where s.limit_name <> '' and w.tenant = s.tenant collate "C" and w.metric = s.metric collate "C"
        and w.scope >= (s.limit_name || ':') collate "C" and w.scope < (s.limit_name || ';') collate "C"
        and w.hour >= to_timestamp(s.from_hour * 3600) and w.hour < to_timestamp(s.before_hour * 3600)
        and (s.period_s is null or w.period = to_timestamp(s.period_s))
    group by w.scope
) as u
order by 1, 2;

-- name: tenants_by_id
-- Tenants by id, each with its overrides and the catalogue revision in force.
select t.id, t.plan, t.status, coalesce(extract(epoch from t.status_until)::bigint, 0), coalesce(t.parent, ''),
    extract(epoch from t.anchor)::bigint, t.interval_months, t.shadow, t.origin, t.rev, t.projected_rev, t.shard,
    extract(epoch from t.created)::bigint, extract(epoch from t.updated)::bigint,
    (select coalesce(max(revision), 0) from plan_versions),
    (select coalesce(jsonb_object_agg(o.name, o.value), '{}') from plan_overrides as o where o.tenant = t.id)::text
from tenants as t
where t.id = any($1::text[])
order by t.id;

-- name: tenants_after
-- The ids of a page of tenants, of one plan or status when given.
select id from tenants
where id > $1 and ($3 = '' or plan = $3) and ($4 = '' or status = $4)
order by id
limit $2;

-- name: tenants_pending
-- The ids of a shard's tenants that changed since they were projected, the longest waiting first.
select id from tenants where shard = $1 and rev > projected_rev order by rev limit $2;

-- name: lock_tenant
-- Locks a tenant until the transaction ends.
select id from tenants where id = $1 for update;

-- name: insert_tenant
-- Makes a tenant, unless it is there by now, and says whether it did.
insert into tenants (id, plan, shard) values ($1, $2, $3) on conflict (id) do nothing returning id;

-- name: update_tenant
-- Sets what is given of a tenant (null leaves it, parent '' and time 0 clear it) and raises its revision when that changes something.
update tenants as t
set plan = n.plan, status = n.status, status_until = n.status_until, parent = n.parent, anchor = n.anchor,
    shadow = n.shadow, origin = n.origin, rev = nextval('revisions'), updated = ledger_now()
from (
    select id, coalesce($2::text, plan) collate "C" as plan, coalesce($3::text, status) as status,
        case when $4::bigint is null then status_until when $4 = 0 then null else to_timestamp($4::bigint) end as status_until,
        case when $5::text is null then parent else nullif($5, '') end as parent,
        case when $6::bigint is null then anchor else to_timestamp($6::bigint) end as anchor,
        coalesce($7::boolean, shadow) as shadow, case when $8::boolean then 'put' else origin end as origin
    from tenants where id = $1
) as n
where t.id = n.id and (t.plan, t.status, t.status_until, t.parent, t.anchor, t.shadow, t.origin)
    is distinct from (n.plan, n.status, n.status_until, n.parent, n.anchor, n.shadow, n.origin)
returning t.rev;

-- name: touch_tenant
-- Raises a tenant's revision, for a change beside its own row.
update tenants set rev = nextval('revisions'), updated = ledger_now() where id = $1;

-- name: outrun_revision
-- Takes so many revisions that a tenant's is beyond one that was forgotten.
update tenants set rev = (select max(nextval('revisions')) from generate_series(1, $2::bigint)), updated = ledger_now()
where id = $1;

-- name: lock_families
-- Lets one transaction at a time change who is whose parent, so that two cannot close a circle together.
select pg_advisory_xact_lock(hashtext('tenants.parent'));

-- name: ancestors
-- A tenant and its parents, upwards; a circle ends it.
with recursive family as (
    select id, parent, 1 as depth from tenants where id = $1
    union all
    select t.id, t.parent, f.depth + 1 from family as f join tenants as t on t.id = f.parent where f.depth < 16
)
select id from family order by depth;

-- name: set_override
-- Sets an override of a tenant and says whether that changed something.
insert into plan_overrides as o (tenant, name, value, actor) values ($1, $2, $3::text::jsonb, $4)
on conflict (tenant, name) do update set value = excluded.value, actor = excluded.actor, created = ledger_now()
    where o.value is distinct from excluded.value
returning name;

-- name: drop_override
-- Takes an override back and says whether there was one.
delete from plan_overrides where tenant = $1 and name = $2 returning name;

-- name: write_plan_change
-- Adds to a tenant's plan history.
insert into plan_changes (tenant, from_plan, to_plan, actor, reason) values ($1, $2, $3, $4, $5);

-- name: plan_changes
-- A tenant's plan history, the newest first.
select tenant, extract(epoch from at)::bigint, from_plan, to_plan, actor, reason
from plan_changes where tenant = $1 order by id desc limit $2;

-- name: mark_tenants_projected
-- Records the revisions that Redis has; an older one than recorded changes nothing, and only what changed is returned.
update tenants as t set projected_rev = p.rev, interval_months = p.interval_months
from unnest($1::text[], $2::bigint[], $3::int[]) as p (tenant, rev, interval_months)
where t.id = p.tenant collate "C" and t.projected_rev < p.rev
returning t.id;

-- name: drop_tenant_limits
-- Forgets the limits of tenants that are about to get new ones.
delete from tenant_limits where tenant = any($1::text[]);

-- name: write_tenant_limits
-- Keeps the limits of projected snapshots.
insert into tenant_limits (tenant, name, metric, period, scope, included, stop, beyond, shadow)
select * from unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[], $9::boolean[]);

-- name: write_key
-- Keeps a new API key, if its tenant exists.
insert into api_keys (sha256, tenant, name, prefix, shard)
select $1, id, $3, $4, $5 from tenants where id = $2
returning sha256;

-- name: keys_by_hash
-- API keys by their hashes.
select sha256, tenant, name, prefix, extract(epoch from created)::bigint,
    coalesce(extract(epoch from revoked_at)::bigint, 0), rev, projected_rev
from api_keys where sha256 = any($1::text[]) order by rev;

-- name: key_hashes_like
-- Hashes of keys that start with what is given, two at most.
select sha256 from api_keys where sha256 >= $1 and sha256 < $1 || 'g' limit 2;

-- name: key_hashes_of_tenant
-- Hashes of a tenant's keys.
select sha256 from api_keys where tenant = $1;

-- name: keys_pending
-- Hashes of a shard's keys that changed since they were projected.
select sha256 from api_keys where shard = $1 and rev > projected_rev order by rev limit $2;

-- name: revoke_key
-- Revokes a key that is not revoked yet.
update api_keys set revoked_at = ledger_now(), rev = nextval('revisions')
where sha256 = $1 and revoked_at is null
returning sha256;

-- name: mark_keys_projected
-- Records the revisions of keys that Redis has.
update api_keys as k set projected_rev = p.rev
from unnest($1::text[], $2::bigint[]) as p (sha256, rev)
where k.sha256 = p.sha256 collate "C" and k.projected_rev < p.rev;

-- name: lock_tenants
-- Keeps every other change of tenants and catalogue out until the transaction ends; reading goes on.
lock table tenants in share row exclusive mode;

-- name: write_plan_version
-- Puts a catalogue in force.
insert into plan_versions (revision, document, summary, actor)
select coalesce(max(revision), 0) + 1, $1, $2::text::jsonb, $3 from plan_versions;

-- name: touch_all_tenants
-- Raises every tenant's revision.
update tenants set rev = nextval('revisions');

-- name: plan_versions
-- Catalogue versions, the newest first; one of them when its revision is given, else those before a revision when that is.
select revision, document, summary::text, actor, extract(epoch from created)::bigint, projected
from plan_versions
where ($1::bigint = 0 or revision = $1) and ($2::bigint = 0 or revision < $2)
order by revision desc
limit $3;

-- name: mark_plan_version_projected
-- Records that Redis has a catalogue revision, or a newer one.
update plan_versions set projected = true where revision <= $1 and not projected;

-- name: usage_by_period
-- A tenant's totals by metric and billing period.
select metric, extract(epoch from period)::bigint, sum(amount)::bigint
from usage_windows
where tenant = $1 and scope = '' and period >= to_timestamp($2::bigint)
group by metric, period
order by metric, period;

-- name: usage_history
-- A tenant's totals by metric and hour, day or month of UTC.
select metric, extract(epoch from date_trunc($2, hour, 'UTC'))::bigint as at_s, sum(amount)::bigint
from usage_windows
where tenant = $1 and scope = '' and ($5 = '' or metric = $5)
    and hour >= to_timestamp($3::bigint) and hour < to_timestamp($4::bigint)
group by 1, 2
order by 1, 2;

-- name: tenant_counters
-- Every writer's part of a tenant's windows since an hour.
select tenant, metric, scope, extract(epoch from period)::bigint, extract(epoch from hour)::bigint / 3600, writer, amount
from usage_counters
where shard = $1 and tenant = $2 and hour >= to_timestamp($3::bigint * 3600)
order by hour, metric, scope, period, writer;

-- name: drift
-- Windows since an hour whose total is not the sum of their counters.
select tenant, metric, scope, extract(epoch from period)::bigint, extract(epoch from hour)::bigint / 3600,
    coalesce(w.amount, 0), coalesce(c.amount, 0)::bigint
from (select * from usage_windows where hour >= to_timestamp($1::bigint * 3600)) as w
full join (
    select tenant, metric, scope, period, hour, sum(amount) as amount
    from usage_counters where hour >= to_timestamp($1::bigint * 3600)
    group by tenant, metric, scope, period, hour
) as c using (tenant, metric, scope, period, hour)
where w.amount is distinct from c.amount
order by hour, tenant, metric, scope;

-- name: write_audit
-- Adds to the audit log.
insert into audit_log (actor, action, tenant, detail) values ($1, $2, nullif($3, ''), $4::text::jsonb);

-- name: read_audit
-- The newest entries of the audit log, of one tenant or before one entry when given.
select id, extract(epoch from at)::bigint, actor, action, coalesce(tenant, ''), detail::text
from audit_log
where ($1 = '' or tenant = $1) and ($2::bigint = 0 or id < $2)
order by id desc
limit $3;

-- name: shards_pending
-- Shards with tenants or API keys that changed since they were projected.
select shard from tenants where rev > projected_rev
union
select shard from api_keys where rev > projected_rev;

-- name: forget_tenants_projected
-- Makes every tenant of a shard pending: Redis lost what was projected.
update tenants set projected_rev = 0 where shard = $1;

-- name: forget_keys_projected
-- Makes every API key of a shard pending: Redis lost what was projected.
update api_keys set projected_rev = 0 where shard = $1;

-- name: current_revision
-- The catalogue revision in force; null before the first.
select max(revision) from plan_versions;

-- name: owe_tenants
-- Makes tenants pending: their limits are to be rebuilt from the ledger, whatever happens before that is done.
update tenants set projected_rev = 0 where id = any($1::text[]);
