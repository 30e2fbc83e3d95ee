-- name: billable_usage
-- What a tenant's period has used so far by metric, and since an instant; of a billed tenant only what is sent to Stripe.
select w.metric, sum(w.amount)::bigint as used,
    coalesce(sum(w.amount) filter (where w.hour >= to_timestamp($3::bigint)), 0)::bigint as recent
from usage_windows as w
left join billing_customers as c on c.tenant = w.tenant
left join lateral (
    select date_trunc('hour', min(o.created), 'UTC') as since
    from stripe_objects as o where o.kind = 'meter' and o.metric = w.metric having bool_or(o.current)
) as m on c.tenant is not null
where w.tenant = $1 and w.scope = '' and w.period = to_timestamp($2::bigint)
    and (c.tenant is null or greatest(w.hour, w.period) >= c.billed_from and (m.since is null or w.hour >= m.since))
group by w.metric;

-- name: moved_usage
-- What late usage adds to a tenant's period, and what of the period is billed in the one after it (negative), by metric.
select metric, sum(case when period < to_timestamp($2::bigint) then amount else -amount end)::bigint as amount
from stripe_outbox
where tenant = $1 and late and state <> 'parked'
    and (period < to_timestamp($2::bigint) and at >= to_timestamp($2::bigint) and at < to_timestamp($3::bigint)
        or period = to_timestamp($2::bigint) and at >= to_timestamp($3::bigint))
group by metric;
