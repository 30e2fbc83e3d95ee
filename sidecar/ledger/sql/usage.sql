-- name: introduce_tenants
-- Makes a tenant of every id that was counted before anybody put it.
insert into tenants (id, plan, origin, shard)
select id, $2, 'introduced', $3
from unnest($1::text[]) as id
where not exists (select from tenants as t where t.id = id.id collate "C")
on conflict (id) do nothing;

-- name: merge_counters
-- Merges counters with max and sets the totals of the windows that grew; the caller holds the shard, so what it reads stays.
-- Columns of text come joined by $9, those of numbers as array literals: both are cheaper to send than arrays.
with incoming as materialized (
    -- A single empty text is no element.
    select coalesce(i.tenant, '') collate "C" as tenant, coalesce(i.metric, '') collate "C" as metric,
        coalesce(i.scope, '') collate "C" as scope, to_timestamp(i.period_s) as period, to_timestamp(i.hour * 3600) as hour,
        coalesce(i.writer, '') collate "C" as writer, max(i.amount) as amount
    from unnest(string_to_array($2::text, $9::text), string_to_array($3::text, $9), string_to_array($4::text, $9),
        $5::text::bigint[], $6::text::bigint[], string_to_array($7::text, $9), $8::text::bigint[])
        as i (tenant, metric, scope, period_s, hour, writer, amount)
    where i.amount <> 0
    group by 1, 2, 3, 4, 5, 6
    order by 5, 1, 2, 3, 4, 6
), stored as materialized (
    -- The statement sees the counters as they were before it.
    select t.hour, t.tenant, t.metric, t.scope, t.period, c.writer, c.amount
    from (select distinct hour, tenant, metric, scope, period from incoming) as t
    cross join lateral (
        select c.writer, c.amount from usage_counters as c
        where c.shard = $1::int and c.hour = t.hour and c.tenant = t.tenant and c.metric = t.metric
            and c.scope = t.scope and c.period = t.period
        offset 0
    ) as c
), grown as materialized (
    select i.*, i.amount - coalesce(s.amount, 0) as growth
    from incoming as i left join stored as s using (hour, tenant, metric, scope, period, writer)
    where s.amount is null or s.amount < i.amount
), counted as (
    insert into usage_counters as c (shard, hour, tenant, metric, scope, period, writer, amount)
    select $1::int, hour, tenant, metric, scope, period, writer, amount from grown
    on conflict (shard, hour, tenant, metric, scope, period, writer) do update set amount = excluded.amount
        where c.amount < excluded.amount
), totals as (
    insert into usage_windows as w (tenant, metric, scope, period, hour, amount)
    select tenant, metric, scope, period, hour, least(g.growth + coalesce(s.amount, 0), 9223372036854775807)::bigint
    from (select tenant, metric, scope, period, hour, sum(growth) as growth from grown group by 1, 2, 3, 4, 5) as g
    left join (select tenant, metric, scope, period, hour, sum(amount) as amount from stored group by 1, 2, 3, 4, 5) as s
        using (tenant, metric, scope, period, hour)
    on conflict (tenant, metric, scope, period, hour) do update set amount = greatest(w.amount, excluded.amount)
), undecided as (
    -- From which hour on the outbox has something to decide.
    insert into shards as s (shard, touched_from)
    select $1::int, min(hour) from grown having count(*) > 0
    on conflict (shard) do update set touched_from = excluded.touched_from
        where s.touched_from is null or s.touched_from > excluded.touched_from
)
select count(*) from grown;

-- name: unfold_windows
-- Gives windows that were folded their counters back, before something is merged into them; the caller holds the shard.
with incoming as (
    select distinct i.tenant collate "C" as tenant, i.metric collate "C" as metric, i.scope collate "C" as scope,
        to_timestamp(i.period_s) as period, to_timestamp(i.hour * 3600) as hour
    from unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[]) as i (tenant, metric, scope, period_s, hour)
), folded as materialized (
    select w.tenant, w.metric, w.scope, w.period, w.hour, w.amount, w.marks
    from incoming as i
    cross join lateral (
        select w.* from usage_windows as w
        where w.tenant = i.tenant and w.metric = i.metric and w.scope = i.scope and w.period = i.period and w.hour = i.hour
            and w.marks is not null
        offset 0
    ) as w
), counted as (
    insert into usage_counters as c (shard, hour, tenant, metric, scope, period, writer, amount)
    select $1::int, f.hour, f.tenant, f.metric, f.scope, f.period, m.writer, m.amount
    from folded as f cross join lateral marks_of(f.marks) as m
    order by 2, 3, 4, 5, 6, 7
    on conflict (shard, hour, tenant, metric, scope, period, writer) do update set amount = excluded.amount
        where c.amount < excluded.amount
)
insert into usage_windows as w (tenant, metric, scope, period, hour, amount)
select tenant, metric, scope, period, hour, amount from folded order by hour, tenant, metric, scope, period
on conflict (tenant, metric, scope, period, hour) do update set marks = null;

-- name: shards_to_fold
-- Shards that have counters old enough to be folded.
select s.shard from generate_series(0, $1::int - 1) as s (shard)
where exists (select from usage_counters as c where c.shard = s.shard and c.hour < fold_horizon());

-- name: fold_counters
-- Folds so many counters of a shard into the rows of their windows, the oldest first.
select fold_counters($1::int, $2::int);

-- name: recent_counters
-- Every counter of a shard's windows since an hour, folded ones too, by hour.
select tenant, metric, scope, extract(epoch from period)::bigint, extract(epoch from hour)::bigint / 3600 as hour, writer, amount
from (
    select c.tenant, c.metric, c.scope, c.period, c.hour, c.writer, c.amount from usage_counters as c
    where c.shard = $1 and c.hour >= to_timestamp($2::bigint * 3600)
    union all
    -- Read only when something of these hours was folded, which takes clocks that are days apart.
    select w.tenant, w.metric, w.scope, w.period, w.hour, m.writer, m.amount
    from tenants as t
    join usage_windows as w on w.tenant = t.id and w.hour >= to_timestamp($2::bigint * 3600) and w.marks is not null
    cross join lateral marks_of(w.marks) as m
    where t.shard = $1 and to_timestamp($2::bigint * 3600) < (select s.folded_before from shards as s where s.shard = $1)
) as counted
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
-- Every writer's part of a tenant's windows since an hour, folded ones too.
select tenant, metric, scope, extract(epoch from period)::bigint, extract(epoch from hour)::bigint / 3600, writer, amount
from (
    select c.tenant, c.metric, c.scope, c.period, c.hour, c.writer, c.amount from usage_counters as c
    where c.shard = $1 and c.tenant = $2 and c.hour >= to_timestamp($3::bigint * 3600)
    union all
    select w.tenant, w.metric, w.scope, w.period, w.hour, m.writer, m.amount
    from usage_windows as w cross join lateral marks_of(w.marks) as m
    where w.tenant = $2 and w.hour >= to_timestamp($3::bigint * 3600) and w.marks is not null
) as counted
order by hour, metric, scope, period, writer;

-- name: drift
-- Windows since an hour whose total is not the sum of their counters, folded ones included.
select tenant, metric, scope, extract(epoch from period)::bigint, extract(epoch from hour)::bigint / 3600,
    coalesce(w.amount, 0), (coalesce(c.amount, 0) + coalesce(w.folded, 0))::bigint
from (
    select u.*, (select sum(m.amount) from marks_of(u.marks) as m) as folded
    from usage_windows as u where u.hour >= to_timestamp($1::bigint * 3600)
) as w
full join (
    select tenant, metric, scope, period, hour, sum(amount) as amount
    from usage_counters where hour >= to_timestamp($1::bigint * 3600)
    group by tenant, metric, scope, period, hour
) as c using (tenant, metric, scope, period, hour)
where w.amount is distinct from coalesce(c.amount, 0) + coalesce(w.folded, 0)
order by hour, tenant, metric, scope;
