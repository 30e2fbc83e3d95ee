-- name: lock_stripe_setup
-- Lets one setup run at a time, until the transaction ends; false while another one does.
select pg_try_advisory_xact_lock(hashtext('sidecar stripe setup'));

-- name: retire_stripe_objects
-- Marks every object but these as one that nobody new gets.
update stripe_objects set current = false, updated = ledger_now() where current and id <> all ($1::text[]);

-- name: write_stripe_objects
-- Records objects as the current ones of their kind and name.
insert into stripe_objects as o (id, kind, name, plan, metric, event_name, interval_months)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[])
on conflict (id) do update set kind = excluded.kind, name = excluded.name, plan = excluded.plan,
    metric = excluded.metric, event_name = excluded.event_name, interval_months = excluded.interval_months,
    current = true, updated = ledger_now()
where (o.kind, o.name, o.plan, o.metric, o.event_name, o.interval_months, o.current)
    is distinct from (excluded.kind, excluded.name, excluded.plan, excluded.metric, excluded.event_name, excluded.interval_months, true);

-- name: stripe_objects
-- The current objects of a kind, or of every kind when it is empty, by name.
select id, kind, name, plan, metric, event_name, interval_months, current
from stripe_objects
where current and ($1 = '' or kind = $1)
order by kind, name;

-- name: stripe_objects_by_id
-- Objects by their ids, also those that were replaced.
select id, kind, name, plan, metric, event_name, interval_months, current
from stripe_objects
where id = any($1::text[]);

-- name: stripe_plan_prices
-- The current prices of a plan.
select id, kind, name, plan, metric, event_name, interval_months, current
from stripe_objects
where current and kind = 'price' and plan = $1
order by name;

-- name: stripe_prices_in_use
-- Prices of subscriptions that are not over.
select distinct i.price from subscription_items as i join subscriptions as s on s.id = i.subscription
where s.status not in ('canceled', 'incomplete_expired');

-- name: stripe_prices_named
-- Prices by their names, the newest of each, whether new subscriptions get them or not.
select distinct on (name) name, id from stripe_objects
where kind = 'price' and name = any($1::text[])
order by name, created desc;
