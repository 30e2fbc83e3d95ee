-- name: fold_delivered
-- Folds a day of what was delivered long ago, of lanes that were not looked at for the longest: what windows have of a day becomes one row each.
with lanes as materialized (
    select l.tenant, l.metric, l.folded_to, l.horizon,
        least(l.horizon, date_trunc('day', f.at, 'UTC') + interval '1 day') as upto
    from (
        select tenant, metric, folded_to, date_trunc('day', ledger_now() - make_interval(secs => $1::int), 'UTC') as horizon
        from stripe_lanes
        where folded_to < date_trunc('day', ledger_now() - make_interval(secs => $1::int), 'UTC')
        order by folded_to limit $2 for update skip locked
    ) as l
    left join lateral (
        select o.at from stripe_outbox as o
        where o.tenant = l.tenant and o.metric = l.metric and o.at >= l.folded_to order by o.at limit 1
    ) as f on true
), sums as materialized (
    -- Rows of one deadline lie in one billing period; so the sums of every day and period stay what they are. Those of a
    -- minute in which periods turn, at a second, are in the next one's summary, so they stay apart.
    select o.tenant, o.metric, o.period, o.hour, max(o.number) as number, array_agg(o.number) as numbers,
        sum(o.amount)::bigint as amount, sum(o.value) as value, max(o.at) as at, count(*) - 1 + sum(o.folded) as folded
    from lanes as l
    join stripe_outbox as o on o.tenant = l.tenant and o.metric = l.metric and o.at >= l.folded_to and o.at < l.upto
    join tenants as t on t.id = o.tenant
    cross join lateral (
        select coalesce(bool_or(floor(extract(epoch from o.at) / 60) % 1440 = floor(extract(epoch from turns) / 60) % 1440), false)
            as of_turn
        from (values (o.period), (t.anchor)) as v (turns) where extract(second from turns) <> 0
    ) as minute
    where o.state = 'delivered'
    group by o.tenant, o.metric, o.period, o.hour, o.deadline, o.late, o.adopted,
        case when minute.of_turn then date_trunc('minute', o.at) end
    having count(*) > 1
), gone as (
    delete from stripe_outbox as o using sums as s
    where o.tenant = s.tenant and o.metric = s.metric and o.period = s.period and o.hour = s.hour
        and o.number = any(s.numbers) and o.number <> s.number
    returning 1
), kept as (
    update stripe_outbox as o set amount = s.amount, value = s.value, at = s.at, folded = s.folded
    from sums as s
    where o.tenant = s.tenant and o.metric = s.metric and o.period = s.period and o.hour = s.hour and o.number = s.number
), looked as (
    update stripe_lanes as l set folded_to = coalesce(n.upto, n.horizon)
    from lanes as n where l.tenant = n.tenant and l.metric = n.metric
)
select (select count(*) from lanes), (select count(*) from gone);
