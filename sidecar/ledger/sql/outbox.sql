-- name: shards_to_decide
-- Which ledger this is, its now, and the shards that have something to decide, each with when that was done last.
select i.ledger_id, extract(epoch from ledger_now())::bigint, s.shard, extract(epoch from s.decided)::bigint
from installation as i
left join (
    select s.shard, s.decided from shards as s
    where s.touched_from is not null
    union
    select t.shard, coalesce(s.decided, 'epoch') from billing_customers as c
    join tenants as t on t.id = c.tenant left join shards as s on s.shard = t.shard
    where not c.looked
) as s on true
order by s.shard;

-- name: outbox_state
-- What a shard's deltas are decided with: which ledger this is, its now, hours touched, metrics with meters, new customers.
select i.ledger_id, extract(epoch from ledger_now())::bigint as now_s,
    extract(epoch from s.touched_from)::bigint as touched_s, coalesce(s.metered, '{}') as metered,
    (select coalesce(array_agg(m.metric), '{}') from (
        select metric from stripe_objects where kind = 'meter' group by metric having bool_or(current)) as m) as meters,
    (select extract(epoch from min(m.since))::bigint from (
        select metric, min(created) as since from stripe_objects where kind = 'meter' group by metric having bool_or(current)) as m
     where m.metric <> all (coalesce(s.metered, '{}'))) as new_meters_s,
    (select coalesce(array_agg(c.tenant), '{}') from billing_customers as c join tenants as t on t.id = c.tenant
     where t.shard = $1 and not c.looked) as newcomers
from installation as i left join shards as s on s.shard = $1;

-- name: undecided_windows
-- Windows of a shard whose total the outbox does not have: what may be decided by hour, then what has to wait and why.
with metered as (
    select metric, date_trunc('hour', min(created), 'UTC') as since
    from stripe_objects where kind = 'meter' group by metric having bool_or(current)
), billed as (
    select c.tenant, c.billed_from, c.restored, c.items_since, t.anchor, t.interval_months,
        exists (select from billing_changes as x where x.tenant = c.tenant and (x.ends > now() or x.work is not null)) as changing
    from billing_customers as c join tenants as t on t.id = c.tenant
    where t.shard = $1 and ($4 = '' or c.tenant = $4 collate "C")
), touched as (
    -- The key of the counters starts with the shard and the hour, that of the windows does not.
    select c.tenant, c.metric, c.period, c.hour from usage_counters as c
    where c.shard = $1 and c.hour >= to_timestamp($2::bigint) and c.scope = '' and ($4 = '' or c.tenant = $4 collate "C")
    union
    -- Counters that were folded: only when something is to be decided since hours that are days ago.
    select w.tenant, w.metric, w.period, w.hour from billed as b join usage_windows as w on w.tenant = b.tenant
    where w.scope = '' and w.marks is not null and w.hour >= to_timestamp($2::bigint)
        and to_timestamp($2::bigint) < (select s.folded_before from shards as s where s.shard = $1)
    union
    select w.tenant, w.metric, w.period, w.hour from billed as b join usage_windows as w on w.tenant = b.tenant
    where w.scope = '' and w.hour >= date_trunc('hour', b.billed_from, 'UTC') and b.tenant = any($6::text[])
), undecided as (
    select w.tenant, w.metric, w.period, w.hour, w.amount - coalesce(o.amount, 0) as amount,
        coalesce(o.number, 0) + 1 as number, b.anchor, b.interval_months, b.items_since,
        case
            when b.restored is not null and (l.verified is null or l.verified < b.restored) then 'unverified'
            when greatest(w.hour, w.period, b.items_since) > ledger_now() then 'future'
            -- Whoever changes a tenant's billing decides for it; since when its items count is known after that.
            when b.changing and $4 = '' then 'changing'
            when exists (
                select from stripe_outbox as x where x.tenant = w.tenant and x.metric = w.metric
                    and x.state = 'waiting' and x.tries = 0) then 'backlog'
            else ''
        end as held
    from touched
    join billed as b using (tenant)
    join metered as m using (metric)
    join usage_windows as w
        on w.tenant = touched.tenant and w.metric = touched.metric and w.scope = '' and w.period = touched.period
        and w.hour = touched.hour
    left join stripe_lanes as l on l.tenant = w.tenant and l.metric = w.metric
    cross join lateral (
        select sum(x.amount)::bigint as amount, max(x.number) as number from stripe_outbox as x
        where x.tenant = w.tenant and x.metric = w.metric and x.period = w.period and x.hour = w.hour
    ) as o
    where w.metric = any($5::text[]) and w.amount > coalesce(o.amount, 0) and greatest(w.hour, w.period) >= b.billed_from and w.hour >= m.since
)
select tenant, metric, extract(epoch from period)::bigint, extract(epoch from hour)::bigint, amount, number,
    extract(epoch from anchor)::bigint, interval_months, held, coalesce(extract(epoch from items_since)::bigint, 0),
    coalesce(extract(epoch from billable_from(tenant, greatest(hour, period)))::bigint, 9007199254740992)
from undecided
order by held <> '', hour, tenant, metric, period
limit $3;

-- name: minutes_taken
-- Minutes that rows of lanes have as timestamps, within a span each.
select distinct s.ordinality::int - 1, extract(epoch from o.at)::bigint / 60
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) with ordinality
    as s (tenant, metric, from_s, to_s, ordinality)
join stripe_outbox as o
    on o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C"
    and o.at >= to_timestamp(s.from_s) and o.at < to_timestamp(s.to_s);

-- name: write_deltas
-- Writes rows of the outbox; what is delivered already was adopted.
insert into stripe_outbox (tenant, metric, period, hour, number, amount, value, identifier, at, deadline, late, adopted,
    state, reason, attempt, tries, delivered)
select d.tenant, d.metric, to_timestamp(d.period_s), to_timestamp(d.hour_s), d.number, d.amount, d.value::numeric,
    d.identifier, to_timestamp(d.at_s), to_timestamp(d.deadline_s), d.late, d.adopted,
    case when d.adopted then 'delivered' when d.unbillable <> '' then 'unbillable' else 'waiting' end, d.unbillable,
    case when d.adopted then 0 else 1 end, 0,
    case when d.adopted then ledger_now() end
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[], $6::bigint[], $7::text[], $8::text[],
    $9::bigint[], $10::bigint[], $11::boolean[], $12::boolean[], $13::text[])
    as d (tenant, metric, period_s, hour_s, number, amount, value, identifier, at_s, deadline_s, late, adopted, unbillable);

-- name: wake_lanes
-- Gives lanes something to do: now, or when they may be tried again after a failure.
insert into stripe_lanes as l (tenant, metric, due, deadline)
select w.tenant, w.metric, ledger_now(), to_timestamp(min(w.deadline_s))
from unnest($1::text[], $2::text[], $3::bigint[]) as w (tenant, metric, deadline_s)
group by w.tenant, w.metric
order by w.tenant, w.metric
on conflict (tenant, metric) do update set deadline = least(l.deadline, excluded.deadline),
    due = least(l.due, greatest(excluded.due, l.not_before));

-- name: wake_unverified_lanes
-- Has lanes compared with Stripe, some time after the ledger was found to be older than Stripe.
insert into stripe_lanes as l (tenant, metric, due)
select w.tenant, w.metric, greatest(c.restored + make_interval(secs => $3::bigint), ledger_now())
from (select distinct tenant, metric from unnest($1::text[], $2::text[]) as w (tenant, metric)) as w
join billing_customers as c on c.tenant = w.tenant collate "C"
order by w.tenant, w.metric
on conflict (tenant, metric) do update set due = coalesce(l.due, excluded.due);

-- name: decided
-- Records that a shard's deltas were decided, and what is left to look at.
insert into shards as s (shard, touched_from, decided, metered)
values ($1, to_timestamp($2::bigint), ledger_now(), $3::text[])
on conflict (shard) do update set touched_from = excluded.touched_from, decided = excluded.decided,
    metered = excluded.metered;

-- name: customers_looked_at
-- Records that the windows of new customers were looked at.
update billing_customers set looked = true where tenant = any($1::text[]);

-- name: lock_lanes_of_rows
-- Locks the lanes of rows by identifiers, before anything of these rows is changed, in the order in which everybody does.
select from stripe_lanes as l
where (l.tenant, l.metric) in (select o.tenant, o.metric from stripe_outbox as o where o.identifier = any($1::text[]))
order by l.tenant, l.metric for update of l;

-- name: rows_by_identifier
-- The row with an identifier, locked.
select tenant, metric, extract(epoch from period)::bigint, extract(epoch from hour)::bigint, number, attempt, state, tries,
    summed
from stripe_outbox where identifier = $1 for update;

-- name: mark_reported
-- Notes that Stripe reported an event as not counted after it had taken it.
update stripe_outbox set reported = ledger_now() where identifier = $1;

-- name: new_attempts
-- Gives rows of which certainly nothing arrived a new identifier, and has them sent again.
update stripe_outbox as o set identifier = n.identifier, attempt = o.attempt + 1, state = 'waiting', reason = n.reason,
    first_sent = null, last_sent = null, look_at = null, delivered = null, reported = null, replays = 0,
    tries = 0, summed = false
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[], $6::text[], $7::text[])
    as n (tenant, metric, period_s, hour_s, number, identifier, reason)
where o.tenant = n.tenant collate "C" and o.metric = n.metric collate "C" and o.period = to_timestamp(n.period_s)
    and o.hour = to_timestamp(n.hour_s) and o.number = n.number;

-- name: mark_summed
-- Notes of rows that Stripe has or may have, by spans of their timestamps, that sums of those were explained with them.
update stripe_outbox as o set summed = true
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) as s (tenant, metric, from_s, before_s)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.at >= to_timestamp(s.from_s)
    and o.at < to_timestamp(s.before_s) and o.first_sent is not null and not o.summed;

-- name: park_rows
-- Sets rows aside with the reason.
update stripe_outbox as o set state = 'parked', reason = s.reason, look_at = null, delivered = null
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[], $6::text[])
    as s (tenant, metric, period_s, hour_s, number, reason)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.period = to_timestamp(s.period_s)
    and o.hour = to_timestamp(s.hour_s) and o.number = s.number;

-- name: parked_rows
-- Rows that were set aside, the oldest first, of one tenant when given.
select tenant, metric, extract(epoch from period)::bigint, extract(epoch from hour)::bigint, number, amount, attempt,
    identifier, reason, extract(epoch from created)::bigint
from stripe_outbox
where state = 'parked' and ($1 = '' or tenant = $1)
order by created, tenant, metric, hour, number
limit $2;

-- name: outbox_gauges
-- How many rows are on their way or set aside, and for how long the oldest has been on its way.
select count(*) filter (where state in ('waiting', 'sending')), count(*) filter (where state = 'in_doubt'),
    count(*) filter (where state = 'parked'),
    coalesce(extract(epoch from ledger_now() - min(created) filter (where state <> 'parked'))::bigint, 0)
from stripe_outbox where state in ('waiting', 'sending', 'in_doubt', 'parked');

-- name: untried_rows
-- How many rows have not been tried yet though their lanes may be.
select count(*) from stripe_lanes as l join stripe_outbox as o on o.tenant = l.tenant and o.metric = l.metric
where l.due <= ledger_now() and o.state in ('waiting', 'sending') and o.tries = 0;

-- name: open_rows_of
-- How many rows of a tenant are not delivered, and how many of those wait for the summaries or for a person.
select count(*), count(*) filter (where state in ('parked', 'in_doubt'))
from stripe_outbox where tenant = $1 and state not in ('delivered', 'unbillable');

-- name: renew_ledger
-- Makes this another ledger than the one whose identifiers Stripe knows.
update installation set ledger_id = gen_random_uuid() returning ledger_id;

-- name: forget_undelivered
-- Drops rows that were not delivered, of a shard or of one tenant: they are decided anew after a comparison with Stripe.
delete from stripe_outbox as o using tenants as t
where t.id = o.tenant and o.state <> 'delivered' and (t.shard = $1 or t.id = $2);

-- name: forget_undelivered_of_lane
-- Drops rows of a lane that were not delivered: they are decided anew now that it is compared with Stripe.
with gone as (
    delete from stripe_outbox where tenant = $1 and metric = $2 and state <> 'delivered' returning tenant
)
update billing_customers set looked = false where tenant in (select tenant from gone);

-- name: distrust_customers
-- Has the customers of a shard, or one, compared with Stripe before anything new is sent for them.
update billing_customers as c set restored = ledger_now(), looked = false from tenants as t
where t.id = c.tenant and (t.shard = $1 or t.id = $2);

-- name: rest_lanes
-- Lanes of a shard, or of one tenant, have nothing to do until they are compared with Stripe.
update stripe_lanes as l set due = null, deadline = 'infinity', not_before = null, failures = 0, claim = null, claimed_until = null
from tenants as t where t.id = l.tenant and (t.shard = $1 or t.id = $2);

-- name: rest_lane
-- Has a lane wait before it is tried again, with what it has to do then.
insert into stripe_lanes as l (tenant, metric, due, not_before)
values ($1, $2, ledger_now() + make_interval(secs => $3::bigint), ledger_now() + make_interval(secs => $3::bigint))
on conflict (tenant, metric) do update set due = excluded.due, not_before = excluded.not_before;

-- name: shard_of
-- The shard of a tenant.
select shard from tenants where id = $1;
