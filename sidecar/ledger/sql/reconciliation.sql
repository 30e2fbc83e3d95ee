-- name: take_reconciliation
-- Takes the comparison with Stripe for a process for some time, unless another one has it, and says whether it did.
update stripe_reconciliation set claim = $1, claimed_until = now() + make_interval(secs => $2::int)
where claimed_until < now() or claim = $1
returning true;

-- name: free_reconciliation
-- Gives the comparison back.
update stripe_reconciliation set claim = '', claimed_until = 'epoch' where claim = $1;

-- name: end_reconciliation
-- Keeps what a comparison of the whole installation came to, and drops what only earlier ones found.
with dropped as (
    delete from stripe_drift where seen < to_timestamp($1::bigint)
)
update stripe_reconciliation set began = to_timestamp($1::bigint), ended = ledger_now(), since = to_timestamp($2::bigint),
    lanes = $3, unread = $4, repaired = $5, failed = null, problem = '';

-- name: fail_reconciliation
-- Keeps why a comparison did not come to its end.
update stripe_reconciliation set failed = ledger_now(), problem = $1;

-- name: reconciliation
-- The last comparison of the whole installation, and the ledger's now: times of 0 are none; a cast alone would round them up.
select coalesce(floor(extract(epoch from began))::bigint, 0), coalesce(floor(extract(epoch from ended))::bigint, 0),
    coalesce(floor(extract(epoch from since))::bigint, 0), coalesce(floor(extract(epoch from failed))::bigint, 0),
    lanes, unread, repaired, problem, floor(extract(epoch from ledger_now()))::bigint
from stripe_reconciliation;

-- name: compared_customers
-- Customers to be compared, by tenant.
select c.tenant, c.customer, extract(epoch from c.billed_from)::bigint, extract(epoch from t.anchor)::bigint,
    t.interval_months, floor(extract(epoch from ledger_now()))::bigint,
    array(select m.metric from (select distinct metric from stripe_objects where kind = 'meter') as m
        left join stripe_lanes as l on l.tenant = c.tenant and l.metric = m.metric
        where c.restored is not null and (l.verified is null or l.verified < c.restored)) as distrusted
from billing_customers as c join tenants as t on t.id = c.tenant
where c.provider = 'stripe' and c.tenant > $1 and ($2 = '' or c.tenant = $2)
order by c.tenant
limit $3;

-- name: compared_meters
-- Metrics that have a meter, with the ids of all they ever had, and since when.
select metric, array_agg(id order by created), extract(epoch from date_trunc('hour', min(created), 'UTC'))::bigint
from stripe_objects where kind = 'meter'
group by metric having bool_or(current)
order by metric;

-- name: compared_sums
-- What a tenant's windows and rows add up to since an instant, by metric, and by day and period of window and of timestamp.
-- And by the period in whose summary a timestamp shows: summaries have whole minutes, and periods turn inside one.
with metered as (
    select m.metric collate "C" as metric, to_timestamp(m.since_s) as since
    from unnest($2::text[], $3::bigint[]) as m (metric, since_s)
), starts as (
    select array_agg(to_timestamp(s) order by s) as at,
        array_agg(date_trunc('minute', to_timestamp(s)) order by s) as shown
    from unnest($5::bigint[]) as s
), sent as materialized (
    -- What was sent to an earlier customer of the tenant lies before the present one's time.
    -- An adopted row has the hour in which Stripe has it: of its window's own hour, what lies in the window's period.
    select o.*, o.hour >= m.since and greatest(o.hour, o.period) >= c.billed_from as billed,
        case when o.adopted and o.at = o.hour then greatest(o.at, o.period) else o.at end as lies
    from metered as m
    join billing_customers as c on c.tenant = $1
    join stripe_outbox as o on o.tenant = c.tenant and o.metric = m.metric
    where o.at >= to_timestamp($4::bigint) and o.at >= c.billed_from
), stood_for as (
    select metric, period, hour, sum(amount)::bigint as amount from sent
    where billed and hour >= to_timestamp($4::bigint) group by 1, 2, 3
), counted as (
    select w.metric, w.period, w.hour, w.amount
    from metered as m
    join billing_customers as c on c.tenant = $1
    join usage_windows as w on w.tenant = c.tenant and w.metric = m.metric and w.scope = ''
    where w.hour >= to_timestamp($4::bigint) and w.hour >= m.since and greatest(w.hour, w.period) >= c.billed_from
), windows as (
    select metric, period, hour, coalesce(w.amount, 0) as amount,
        coalesce(w.amount, 0) - coalesce(s.amount, 0) as undecided
    from counted as w full join stood_for as s using (metric, period, hour)
), attended as (
    -- From which hour on the outbox will look by itself; null: at everything.
    select case when c.looked then coalesce(s.touched_from, 'infinity') end as from_hour, coalesce(s.metered, '{}') as metered
    from billing_customers as c join tenants as t on t.id = c.tenant left join shards as s on s.shard = t.shard
    where c.tenant = $1
)
select 'window' as what, w.metric, extract(epoch from date_trunc('day', w.hour, 'UTC'))::bigint,
    width_bucket(w.period, (select at from starts)) - 1, null::bigint, null::int, null::int, '',
    sum(w.amount)::bigint, sum(greatest(w.undecided, 0))::bigint,
    coalesce(sum(w.undecided) filter (where w.undecided > 0 and w.hour < a.from_hour and w.metric = any(a.metered)), 0)::bigint,
    coalesce(extract(epoch from min(w.hour) filter (
        where w.undecided > 0 and w.hour < a.from_hour and w.metric = any(a.metered)))::bigint, 0),
    sum(greatest(-w.undecided, 0))::bigint
from windows as w cross join attended as a
group by 1, 2, 3, 4
union all
select 'rows', o.metric, extract(epoch from date_trunc('day', o.hour, 'UTC'))::bigint,
    width_bucket(o.period, (select at from starts)) - 1,
    extract(epoch from date_trunc('day', o.at, 'UTC'))::bigint,
    case when o.adopted and o.at <> o.hour then width_bucket(o.lies, (select shown from starts))
        else width_bucket(o.lies, (select at from starts)) end - 1,
    width_bucket(o.lies, (select shown from starts)) - 1,
    case
        when o.state = 'delivered' and not o.adopted and o.delivered > ledger_now() - make_interval(secs => $6::int)
            then 'recent'
        when o.state in ('delivered', 'in_doubt', 'parked', 'unbillable') then o.state
        when o.first_sent is null then 'waiting'
        else 'in_doubt'
    end,
    sum(o.amount)::bigint, 0, 0, 0, 0
from sent as o
group by 1, 2, 3, 4, 5, 6, 7, 8
order by 1, 2, 3, 4, 5, 6, 7, 8;

-- name: rows_between
-- Rows of a lane by timestamp, with what tells whether Stripe has them.
select extract(epoch from period)::bigint, extract(epoch from hour)::bigint, number, amount, identifier, attempt, state,
    adopted, summed, extract(epoch from at)::bigint, coalesce(extract(epoch from first_sent)::bigint, 0),
    coalesce(extract(epoch from delivered)::bigint, 0)
from stripe_outbox
where tenant = $1 and metric = $2 and at >= to_timestamp($3::bigint) and at < to_timestamp($4::bigint)
order by at, hour, period, number;

-- name: later_delivery
-- The timestamp of a row of a lane that was delivered some time after another one; its minute must show by now.
select extract(epoch from at)::bigint
from stripe_outbox
where tenant = $1 and metric = $2 and state = 'delivered' and not adopted and delivered > to_timestamp($3::bigint)
    and delivered < ledger_now() - make_interval(secs => $4::int) and at > ledger_now() - interval '35 days'
order by delivered desc limit 1;

-- name: lock_free_lane
-- Locks a lane, and says whether nobody has claimed it.
select (claimed_until is null or claimed_until < now()) is true from stripe_lanes
where tenant = $1 and metric = $2 for update;

-- name: drop_drift
-- Forgets what was found of a tenant's metrics in spans that are about to be written anew.
delete from stripe_drift where tenant = $1 and metric = any($2::text[]) and ends > to_timestamp($3::bigint);

-- name: write_drift
-- Keeps what was found of a tenant.
insert into stripe_drift (tenant, metric, span, starts, ends, ledger, delivered, waiting, in_doubt, parked, late, stripe,
    explained, matters, seen)
select $1, d.metric, d.span, to_timestamp(d.from_s), to_timestamp(d.to_s), d.ledger, d.delivered, d.waiting, d.in_doubt,
    d.parked, d.late, d.stripe, d.explained::jsonb, d.matters, ledger_now()
from unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
    $10::bigint[], $11::bigint[], $12::bigint[], $13::text[], $14::boolean[])
    as d (metric, span, from_s, to_s, ledger, delivered, waiting, in_doubt, parked, late, stripe, explained, matters);

-- name: drift_by_kind
-- Base units that differ by days and tenants in which they do, by kind of explanation.
select e.key, sum(abs(e.value::bigint))::bigint, count(distinct d.tenant)
from stripe_drift as d cross join lateral jsonb_each_text(d.explained) as e
where d.span = 'day'
group by 1;

-- name: lock_lanes_sent
-- Locks the lanes to which something was sent, of some metrics (or of all), within a time: as for doubt_deliveries.
select from stripe_lanes as l
where (l.tenant, l.metric) in (
    select o.tenant, o.metric from stripe_outbox as o
    where o.state in ('delivered', 'sending') and not o.adopted and ($1::text[] is null or o.metric = any($1::text[]))
        and o.last_sent >= to_timestamp($2::bigint) and o.last_sent <= to_timestamp($3::bigint))
order by l.tenant, l.metric for update of l;

-- name: doubt_deliveries
-- Leaves what was sent to some meters (or to all) within a time to the summaries, since some of it did not count.
-- What is still called sending may have its answer already.
update stripe_outbox as o set state = 'in_doubt', reason = $5, delivered = null, reported = ledger_now(),
    look_at = ledger_now() + make_interval(secs => $6::int)
where o.state in ('delivered', 'sending') and not o.adopted and ($1::text[] is null or o.metric = any($1::text[]))
    and o.last_sent >= to_timestamp($2::bigint) and o.last_sent <= to_timestamp($3::bigint)
    and o.identifier <> all($4::text[]) and o.at > ledger_now() - interval '35 days'
returning o.tenant, o.metric, extract(epoch from o.deadline)::bigint;

-- name: parked_row
-- A row that was set aside, locked, and why it was.
select tenant, metric, extract(epoch from period)::bigint, extract(epoch from hour)::bigint, number, amount, identifier,
    attempt, state, adopted, summed, extract(epoch from at)::bigint, coalesce(extract(epoch from first_sent)::bigint, 0),
    coalesce(extract(epoch from delivered)::bigint, 0), reason
from stripe_outbox where identifier = $1 and state = 'parked' for update;

-- name: lock_parked_lanes
-- Locks lanes with rows that were set aside, of one tenant when given.
select from stripe_lanes as l
where (l.tenant, l.metric) in (
    select o.tenant, o.metric from stripe_outbox as o where o.state = 'parked' and ($1 = '' or o.tenant = $1))
order by l.tenant, l.metric for update of l;

-- name: retriable_rows
-- Rows that were set aside, locked, of one tenant when given; those that may have arrived only when the caller is sure.
select tenant, metric, extract(epoch from period)::bigint, extract(epoch from hour)::bigint, number, amount, identifier,
    attempt, state, adopted, summed, extract(epoch from at)::bigint, coalesce(extract(epoch from first_sent)::bigint, 0),
    coalesce(extract(epoch from delivered)::bigint, 0)
from stripe_outbox
where state = 'parked' and ($1 = '' or tenant = $1) and (first_sent is null or $2)
order by tenant, metric, at
limit $3
for update;

-- name: parked_row_arrived
-- Records that a row which was set aside had arrived.
update stripe_outbox set state = 'delivered', delivered = ledger_now(), reason = '' where identifier = $1 and state = 'parked';

-- name: look_again
-- Has the outbox look at a tenant's windows from an hour on.
insert into shards as s (shard, touched_from)
select shard, to_timestamp($2::bigint) from tenants where id = $1
on conflict (shard) do update set touched_from = least(s.touched_from, excluded.touched_from);

-- name: certainly_absent
-- Records of rows that were set aside that they did not arrive; not when another call, or another row, may have for them.
update stripe_outbox set first_sent = null
where identifier = any($1::text[]) and state = 'parked' and tries <= 1 and not summed;
