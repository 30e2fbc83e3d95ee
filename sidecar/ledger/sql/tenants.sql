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
-- Gives a tenant a revision beyond one that was forgotten: the next, or where that is none, one so far beyond it.
-- A sequence can be set back as well, so one transaction at a time sets it, and far ahead of what others are given meanwhile.
-- Who comes second changes nothing and tries again later; if it waited, with rows that the first one wants, both would.
with alone as materialized (select pg_try_advisory_xact_lock(hashtext('revisions')) as got),
    next as materialized (select nextval('revisions') as rev from alone where alone.got)
update tenants set updated = ledger_now(), rev = (
    select case when next.rev > $2::bigint then next.rev else setval('revisions', $2::bigint + $3::bigint) end from next)
where id = $1 and exists (select from next);

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

-- name: forget_tenants_projected
-- Makes every tenant of a shard pending: Redis lost what was projected.
update tenants set projected_rev = 0 where shard = $1;

-- name: leave_revisions_behind
-- Goes so far on with revisions that none is given again which a restored ledger has forgotten.
-- No row when another transaction is about to set them.
with alone as materialized (select pg_try_advisory_xact_lock(hashtext('revisions')) as got)
select setval('revisions', nextval('revisions') + $1::bigint) from alone where alone.got;

-- name: renew_tenants
-- Gives every tenant of a shard a new revision, which Redis does not have.
update tenants set rev = nextval('revisions'), projected_rev = 0 where shard = $1;

-- name: owe_tenants
-- Makes tenants pending: their limits are to be rebuilt from the ledger, whatever happens before that is done.
update tenants set projected_rev = 0 where id = any($1::text[]);

-- name: drop_tenant_limits
-- Forgets the limits of tenants that are about to get new ones.
delete from tenant_limits where tenant = any($1::text[]);

-- name: write_tenant_limits
-- Keeps the limits of projected snapshots.
insert into tenant_limits (tenant, name, metric, period, scope, included, stop, beyond, shadow)
select * from unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[], $9::boolean[]);
