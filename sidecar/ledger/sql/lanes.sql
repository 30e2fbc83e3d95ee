-- name: claim_lanes
-- Claims lanes that have something to do, those whose period closes first before the others.
with chosen as materialized (
    select tenant, metric from stripe_lanes
    where due <= ledger_now() and (claimed_until is null or claimed_until < now())
        and ($4 = '' or tenant = $4 collate "C")
        -- Whoever changes a tenant's billing sends for it; since when its items count is known after that.
        and ($4 <> '' or not exists (
            select from billing_changes as x where x.tenant = stripe_lanes.tenant and (x.ends > now() or x.work is not null)))
    order by deadline, due
    limit $2
    for update skip locked
)
update stripe_lanes as l set claim = $1, claimed_until = now() + make_interval(secs => $3::bigint)
from chosen as c where l.tenant = c.tenant and l.metric = c.metric
returning l.tenant, l.metric, l.failures;

-- name: lane_work
-- What claimed lanes have to do: their customer and meter, the row that is next, and whether a row in doubt is to be looked at.
select n.tenant, n.metric, coalesce(c.customer, '') as customer, coalesce(m.id, '') as meter,
    coalesce(m.event_name, '') as event_name, extract(epoch from ledger_now())::bigint as now_s,
    extract(epoch from t.anchor)::bigint as anchor_s, t.interval_months,
    coalesce(extract(epoch from c.items_since)::bigint, 0) as items_since_s,
    coalesce(extract(epoch from billable_from(n.tenant, greatest(o.hour, o.period)))::bigint, 9007199254740992) as bills_from_s,
    (c.restored is not null and (l.verified is null or l.verified < c.restored)) is true as distrusted,
    coalesce(extract(epoch from c.restored)::bigint, 0) as restored_s,
    exists (select from stripe_outbox as d where d.tenant = n.tenant and d.metric = n.metric and d.state = 'in_doubt'
        and d.look_at <= ledger_now()) as doubtful,
    extract(epoch from o.period)::bigint as period_s, extract(epoch from o.hour)::bigint as hour_s, o.number,
    o.value::text as value, o.identifier, o.attempt, o.tries, o.replays, extract(epoch from o.at)::bigint as at_s,
    extract(epoch from o.deadline)::bigint as deadline_s,
    coalesce(extract(epoch from o.first_sent)::bigint, 0) as first_sent_s,
    coalesce(extract(epoch from o.last_sent)::bigint, 0) as last_sent_s
from unnest($1::text[], $2::text[]) as i (tenant, metric)
cross join lateral (select i.tenant collate "C" as tenant, i.metric collate "C" as metric) as n
join tenants as t on t.id = n.tenant
join stripe_lanes as l on l.tenant = n.tenant and l.metric = n.metric
left join billing_customers as c on c.tenant = n.tenant
left join stripe_objects as m on m.kind = 'meter' and m.name = n.metric and m.current
left join lateral (
    select * from stripe_outbox as o
    where o.tenant = n.tenant and o.metric = n.metric and o.state in ('waiting', 'sending')
    order by o.state = 'waiting', o.deadline, o.hour, o.number
    limit 1
) as o on true;

-- name: begin_sending
-- Records that rows are about to be sent, before they are.
update stripe_outbox as o set state = 'sending', first_sent = coalesce(o.first_sent, ledger_now()),
    last_sent = ledger_now(), tries = o.tries + 1
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[])
    as s (tenant, metric, period_s, hour_s, number)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.period = to_timestamp(s.period_s)
    and o.hour = to_timestamp(s.hour_s) and o.number = s.number;

-- name: doubt_rows
-- Leaves rows of unknown fate to the summaries, from some time after the last call on.
update stripe_outbox as o set state = 'in_doubt', reason = s.reason, delivered = null,
    look_at = coalesce(o.last_sent, ledger_now()) + make_interval(secs => $7::bigint)
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[], $6::text[])
    as s (tenant, metric, period_s, hour_s, number, reason)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.period = to_timestamp(s.period_s)
    and o.hour = to_timestamp(s.hour_s) and o.number = s.number;

-- name: move_rows
-- Gives rows that were never sent another timestamp.
update stripe_outbox as o set at = to_timestamp(s.at_s), deadline = to_timestamp(s.deadline_s), late = s.late
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[], $6::bigint[], $7::bigint[], $8::boolean[])
    as s (tenant, metric, period_s, hour_s, number, at_s, deadline_s, late)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.period = to_timestamp(s.period_s)
    and o.hour = to_timestamp(s.hour_s) and o.number = s.number and o.first_sent is null;

-- name: write_off_rows
-- Sets rows aside for good that were never sent, with the reason.
update stripe_outbox as o set state = 'unbillable', reason = $6
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[])
    as s (tenant, metric, period_s, hour_s, number)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.period = to_timestamp(s.period_s)
    and o.hour = to_timestamp(s.hour_s) and o.number = s.number and o.first_sent is null;

-- name: reserve_pace
-- Takes the next free slots of so many calls at a rate; returns in how many microseconds the first one is, and the slot's length.
update stripe_pace as p
set next_free = greatest(p.next_free, clock_timestamp()) + make_interval(secs => $1::int * 1000.0 / ($2::int * p.permille)),
    -- Back to the full pace within a minute or so after the last complaint.
    permille = least(1000, p.permille + case when p.changed < clock_timestamp() - interval '2 seconds' then 50 else 0 end),
    changed = case when p.permille < 1000 and p.changed < clock_timestamp() - interval '2 seconds' then clock_timestamp()
        else p.changed end
returning greatest(0, ((extract(epoch from p.next_free - clock_timestamp())
        - $1::int * 1000.0 / ($2::int * p.permille)) * 1000000)::bigint),
    (1000000000.0 / ($2::int * p.permille))::bigint, p.permille;

-- name: slow_pace
-- Slows everybody down after Stripe asked for it; complaints of one second count once.
update stripe_pace set permille = greatest(250, permille * 7 / 10), changed = clock_timestamp(),
    next_free = greatest(next_free, clock_timestamp() + interval '500 milliseconds')
where changed < clock_timestamp() - interval '1 second';

-- name: lock_lanes
-- Locks lanes in the order in which everybody does, and says which of them are still claimed by the caller.
select l.tenant, l.metric, (l.claim = i.claim) is true
from unnest($1::text[], $2::text[], $3::text[]) as i (tenant, metric, claim)
join stripe_lanes as l on l.tenant = i.tenant collate "C" and l.metric = i.metric collate "C"
order by l.tenant, l.metric
for update of l;

-- name: record_fates
-- Records what became of rows; an older try of a row that somebody else tries by now only counts if it was delivered.
-- Then it lies where it was sent, which a ledger that was restored meanwhile may not know. Of an event that was reported
-- meanwhile an answer says nothing: that it was taken is known.
update stripe_outbox as o
set state = f.state, reason = f.reason, replays = o.replays + f.replays,
    at = case when f.state = 'delivered' then to_timestamp(f.at_s) else o.at end,
    first_sent = case when f.no_effect then null else o.first_sent end,
    delivered = case when f.state = 'delivered' then ledger_now() end,
    look_at = case when f.state = 'in_doubt' then o.last_sent + make_interval(secs => $13::bigint) end
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[], $6::text[], $7::text[], $8::text[],
    $9::int[], $10::boolean[], $11::boolean[], $12::bigint[])
    as f (tenant, metric, period_s, hour_s, number, identifier, state, reason, replays, no_effect, ours, at_s)
where o.tenant = f.tenant collate "C" and o.metric = f.metric collate "C" and o.period = to_timestamp(f.period_s)
    and o.hour = to_timestamp(f.hour_s) and o.number = f.number and o.identifier = f.identifier collate "C"
    and (f.ours and o.state = 'sending' or f.state = 'delivered' and o.state <> 'delivered' and o.reported is null);

-- name: release_lanes
-- Gives claimed lanes back, with what they have to do next.
update stripe_lanes as l
set claim = null, claimed_until = null, failures = f.failures, due = n.due, deadline = coalesce(n.deadline, 'infinity'),
    not_before = ledger_now() + make_interval(secs => f.pause_ms / 1000.0)
from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::bigint[]) as f (claim, tenant, metric, failures, pause_ms)
cross join lateral (
    select min(case when o.state = 'in_doubt' then greatest(o.look_at, ledger_now()) else ledger_now() end
            + make_interval(secs => f.pause_ms / 1000.0)) as due,
        min(o.deadline) as deadline
    from stripe_outbox as o
    where o.tenant = f.tenant collate "C" and o.metric = f.metric collate "C"
        and o.state in ('waiting', 'sending', 'in_doubt')
) as n
where l.tenant = f.tenant collate "C" and l.metric = f.metric collate "C" and l.claim = f.claim;

-- name: rows_of_hour
-- Rows of a lane whose timestamp lies in an hour and that Stripe has or may have.
select extract(epoch from period)::bigint, extract(epoch from hour)::bigint, number, value::text, identifier, attempt, tries,
    replays, extract(epoch from at)::bigint, extract(epoch from deadline)::bigint,
    coalesce(extract(epoch from first_sent)::bigint, 0), coalesce(extract(epoch from last_sent)::bigint, 0),
    state, adopted, summed, coalesce(extract(epoch from delivered)::bigint, 0),
    coalesce(extract(epoch from greatest(first_sent, reported))::bigint, 0),
    (state = 'in_doubt' and look_at <= ledger_now()) as to_settle
from stripe_outbox
where tenant = $1 and metric = $2 and at >= to_timestamp($3::bigint) and at < to_timestamp($3::bigint + 3600)
    and (state in ('delivered', 'sending', 'in_doubt') or first_sent is not null)
order by at, hour, period, number;

-- name: hours_in_doubt
-- Hours of a lane with a row in doubt that is to be looked at.
select distinct extract(epoch from date_trunc('hour', at, 'UTC'))::bigint
from stripe_outbox
where tenant = $1 and metric = $2 and state = 'in_doubt' and look_at <= ledger_now()
order by 1 limit $3;

-- name: witness
-- The timestamp of the newest row of a lane that was delivered after an instant; Stripe must show it by now.
select extract(epoch from at)::bigint
from stripe_outbox
where tenant = $1 and metric = $2 and state = 'delivered' and not adopted and delivered > to_timestamp($3::bigint)
    and at > ledger_now() - interval '35 days'
order by delivered desc limit 1;

-- name: look_later
-- Puts off looking at rows in doubt.
update stripe_outbox as o set look_at = ledger_now() + make_interval(secs => $7::bigint), reason = s.reason
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[], $6::text[])
    as s (tenant, metric, period_s, hour_s, number, reason)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.period = to_timestamp(s.period_s)
    and o.hour = to_timestamp(s.hour_s) and o.number = s.number and o.state = 'in_doubt';

-- name: settle_rows
-- Records that rows in doubt have arrived.
update stripe_outbox as o set state = 'delivered', delivered = ledger_now(), reason = '', look_at = null
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[])
    as s (tenant, metric, period_s, hour_s, number)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.period = to_timestamp(s.period_s)
    and o.hour = to_timestamp(s.hour_s) and o.number = s.number and o.state = 'in_doubt';

-- name: delivered_by_hour
-- What Stripe should have of a lane, by the hour of its timestamps.
select extract(epoch from date_trunc('hour', at, 'UTC'))::bigint, sum(value)::text
from stripe_outbox
where tenant = $1 and metric = $2 and state = 'delivered' and at >= to_timestamp($3::bigint)
group by 1 order by 1;

-- name: unbilled_windows
-- Windows of a lane that are billed and have more than their rows stand for, the oldest first, with their next number.
with metered as (
    select date_trunc('hour', min(created), 'UTC') as since
    from stripe_objects where kind = 'meter' and metric = $2 having bool_or(current)
)
select extract(epoch from w.period)::bigint, extract(epoch from w.hour)::bigint, (w.amount - coalesce(o.amount, 0))::bigint,
    coalesce(o.number, 0) + 1
from usage_windows as w
join billing_customers as c on c.tenant = w.tenant
cross join metered as m
cross join lateral (
    select sum(x.amount)::bigint as amount, max(x.number) as number from stripe_outbox as x
    where x.tenant = w.tenant and x.metric = w.metric and x.period = w.period and x.hour = w.hour
) as o
where w.tenant = $1 and w.metric = $2 and w.scope = '' and w.amount > coalesce(o.amount, 0)
    and greatest(w.hour, w.period) >= c.billed_from and w.hour >= m.since
order by w.hour, w.period;

-- name: next_number
-- The number of a window's next row.
select coalesce(max(number), 0) + 1 from stripe_outbox
where tenant = $1 and metric = $2 and period = to_timestamp($3::bigint) and hour = to_timestamp($4::bigint);

-- name: lane_verified
-- Records that a lane agrees with Stripe, and has its windows looked at again.
update stripe_lanes set verified = ledger_now() where tenant = $1 and metric = $2;

-- name: explain_rows
-- Says why rows that wait cannot be sent for now.
update stripe_outbox as o set reason = s.reason
from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::int[], $6::text[])
    as s (tenant, metric, period_s, hour_s, number, reason)
where o.tenant = s.tenant collate "C" and o.metric = s.metric collate "C" and o.period = to_timestamp(s.period_s)
    and o.hour = to_timestamp(s.hour_s) and o.number = s.number and o.reason <> s.reason;
