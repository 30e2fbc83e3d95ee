-- name: linked_customers
-- Every tenant that has a customer at Stripe.
select tenant, customer from billing_customers where provider = 'stripe';

-- name: remember_prices
-- Keeps prices that were made by somebody else, so that subscriptions to them are told apart; never for new ones.
insert into stripe_objects (id, kind, name, plan, metric, current)
select i.id, 'price', i.name, i.plan, i.metric, false
from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as i (id, name, plan, metric)
on conflict (id) do update set name = excluded.name, plan = excluded.plan, metric = excluded.metric, updated = ledger_now()
where not stripe_objects.current
    and (stripe_objects.plan, stripe_objects.metric) is distinct from (excluded.plan, excluded.metric);
