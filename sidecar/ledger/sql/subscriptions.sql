-- name: put_subscription
-- Keeps a subscription as a look saw it, unless a later look saw it already, and says whether it was kept.
insert into subscriptions as s (id, tenant, customer, plan, status, look, made, anchor, interval_months, currency,
    trial_end, cancel_at, cancel_at_period_end, ended, schedule, next_plan, ended_because, trial_start, updated)
values ($1, $2, $3, $4, $5, $6, to_timestamp($7::bigint), to_timestamp($8::bigint), $9, $10,
    to_timestamp($11::bigint), to_timestamp($12::bigint), $13, to_timestamp($14::bigint), $15, $16, $17,
    to_timestamp($18::bigint), ledger_now())
on conflict (id) do update set tenant = excluded.tenant, customer = excluded.customer, plan = excluded.plan,
    status = excluded.status, look = excluded.look, made = excluded.made, anchor = excluded.anchor,
    interval_months = excluded.interval_months, currency = excluded.currency, trial_end = excluded.trial_end,
    cancel_at = excluded.cancel_at, cancel_at_period_end = excluded.cancel_at_period_end, ended = excluded.ended,
    schedule = excluded.schedule, next_plan = excluded.next_plan, ended_because = excluded.ended_because,
    trial_start = excluded.trial_start, updated = excluded.updated
    where s.look < excluded.look
returning true;

-- name: tenant_of_subscription
-- The tenant that a subscription was kept for.
select tenant from subscriptions where id = $1;

-- name: end_subscriptions
-- Ends a subscription, or the living ones of a customer, that are gone at Stripe, unless a later look saw them.
update subscriptions set status = case status when 'incomplete' then 'incomplete_expired' else 'canceled' end,
    ended = ledger_now(), schedule = null, next_plan = '', look = $3, updated = ledger_now()
where (id = $1 or ($2 <> '' and customer = $2)) and status not in ('canceled', 'incomplete_expired') and look < $3
returning id;

-- name: put_off_subscription
-- Has a subscription that could not be fetched looked at again so many seconds later than it would be now.
update subscriptions set updated = ledger_now() - make_interval(secs => $2::int) where id = $1;

-- name: drop_subscription_items
-- Forgets a subscription's items, which are about to be written anew.
delete from subscription_items where subscription = $1;

-- name: put_subscription_items
-- Keeps the items of a subscription.
insert into subscription_items (id, subscription, tenant, plan, metric, price, quantity, period_start, period_end)
select i.id, $1, $2, i.plan, nullif(i.metric, ''), i.price, i.quantity, to_timestamp(i.starts), to_timestamp(i.ends)
from unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[])
    as i (id, plan, metric, price, quantity, starts, ends)
on conflict (id) do update set subscription = excluded.subscription, tenant = excluded.tenant, plan = excluded.plan,
    metric = excluded.metric, price = excluded.price, quantity = excluded.quantity,
    period_start = excluded.period_start, period_end = excluded.period_end;

-- name: raise_items_since
-- Keeps since when a tenant's subscription has the metered items of now; when a price was exchanged, that is known since now.
update billing_customers
set items_since = greatest(items_since, to_timestamp($2::bigint), case when $3::boolean then ledger_now() end)
where tenant = $1 and ($2::bigint is not null or $3::boolean);

-- name: subscriptions_of
-- A tenant's subscriptions, the newest first, each with since when an invoice of it is owed and its period's start.
select s.id, s.tenant, s.customer, s.plan, s.status, extract(epoch from s.made)::bigint,
    extract(epoch from s.anchor)::bigint, s.interval_months, s.currency,
    coalesce(extract(epoch from s.trial_end)::bigint, 0), coalesce(extract(epoch from s.cancel_at)::bigint, 0),
    s.cancel_at_period_end, coalesce(extract(epoch from s.ended)::bigint, 0), coalesce(s.schedule, ''), s.next_plan, s.ended_because,
    (select coalesce(extract(epoch from min(i.owed_since))::bigint, 0) from invoices as i
     where i.subscription = s.id and i.status = 'open' and i.amount_remaining > 0),
    (select coalesce(extract(epoch from max(m.period_start))::bigint, 0) from subscription_items as m
     where m.subscription = s.id)
from subscriptions as s
where s.tenant = $1
order by s.made desc, s.id desc;

-- name: subscription_items_of
-- The items of a subscription.
select id, plan, coalesce(metric, ''), price, coalesce(quantity, 0),
    coalesce(extract(epoch from period_start)::bigint, 0), coalesce(extract(epoch from period_end)::bigint, 0)
from subscription_items where subscription = $1 order by metric nulls first, id;

-- name: subscriptions_unheard_of
-- Living subscriptions that nobody looked at for so many seconds, the longest unheard of first.
select id from subscriptions
where status not in ('canceled', 'incomplete_expired') and updated < ledger_now() - make_interval(secs => $1::int)
order by updated limit $2;

-- name: doubled_subscriptions
-- How many tenants pay for more than one subscription.
select count(*) from (
    select from subscriptions where status not in ('canceled', 'incomplete_expired', 'incomplete')
    group by tenant having count(*) > 1) as doubled;

-- name: graces_over
-- Tenants whose grace after a failed payment is over by now.
select b.tenant from billing_customers as b
where (b.standing ->> 'status') = 'past_due' and (b.standing ->> 'until_s')::bigint > 0
    and to_timestamp((b.standing ->> 'until_s')::bigint) <= ledger_now()
order by b.tenant limit $1;

-- name: put_invoice
-- Keeps an invoice as a look saw it, unless a later look saw it already, and says whether it was kept.
insert into invoices as i (id, tenant, customer, subscription, look, status, currency, invoice_number, reason, total, subtotal,
    tax, amount_due, amount_paid, amount_remaining, period_start, period_end, made, owed_since, due, paid, attempts,
    next_attempt, hosted_url, pdf_url)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, to_timestamp($16::bigint),
    to_timestamp($17::bigint), to_timestamp($18::bigint), to_timestamp($19::bigint), to_timestamp($20::bigint),
    to_timestamp($21::bigint), $22, to_timestamp($23::bigint), $24, $25)
on conflict (id) do update set tenant = excluded.tenant, customer = excluded.customer,
    subscription = excluded.subscription, look = excluded.look, status = excluded.status, currency = excluded.currency,
    invoice_number = excluded.invoice_number, reason = excluded.reason, total = excluded.total,
    subtotal = excluded.subtotal, tax = excluded.tax, amount_due = excluded.amount_due,
    amount_paid = excluded.amount_paid, amount_remaining = excluded.amount_remaining,
    period_start = excluded.period_start, period_end = excluded.period_end, made = excluded.made,
    owed_since = excluded.owed_since, due = excluded.due, paid = excluded.paid, attempts = excluded.attempts,
    next_attempt = excluded.next_attempt, hosted_url = excluded.hosted_url, pdf_url = excluded.pdf_url
    where i.look < excluded.look
returning true;

-- name: drop_invoice_lines
-- Forgets an invoice's lines, which are about to be written anew or go with it.
delete from invoice_lines where invoice = $1;

-- name: drop_invoice
-- Forgets a draft that was deleted at Stripe.
delete from invoices where id = $1 returning tenant;

-- name: put_invoice_lines
-- Keeps the lines of an invoice.
insert into invoice_lines (invoice, tenant, line, id, metric, description, price, currency, quantity, amount, unit_amount,
    period_start, period_end, proration)
select $1, $2, l.line, l.id, nullif(l.metric, ''), l.description, l.price, l.currency, l.quantity, l.amount,
    l.unit_amount, to_timestamp(l.starts), to_timestamp(l.ends), l.proration
from unnest($3::int[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::numeric[], $10::numeric[],
    $11::numeric[], $12::bigint[], $13::bigint[], $14::boolean[])
    as l (line, id, metric, description, price, currency, quantity, amount, unit_amount, starts, ends, proration);

-- name: invoices_of
-- A tenant's invoices, the newest first, with one status when given, before one invoice when given.
select i.id, i.subscription, i.status, i.currency, i.invoice_number, i.reason, i.total, i.subtotal, i.tax, i.amount_due,
    i.amount_paid, i.amount_remaining, extract(epoch from i.period_start)::bigint,
    extract(epoch from i.period_end)::bigint, extract(epoch from i.made)::bigint,
    coalesce(extract(epoch from i.due)::bigint, 0), coalesce(extract(epoch from i.paid)::bigint, 0), i.attempts,
    coalesce(extract(epoch from i.next_attempt)::bigint, 0), i.hosted_url, i.pdf_url
from invoices as i
where i.tenant = $1 and ($2 = '' or i.status = $2)
    and ($3 = '' or (i.made, i.id) < (select b.made, b.id from invoices as b where b.id = $3 and b.tenant = $1))
order by i.made desc, i.id desc
limit $4;

-- name: invoice_lines_of
-- The lines of invoices, in order.
select invoice, line, coalesce(metric, ''), description, price, quantity, amount, unit_amount,
    coalesce(extract(epoch from period_start)::bigint, 0), coalesce(extract(epoch from period_end)::bigint, 0), proration
from invoice_lines where invoice = any($1::text[]) order by invoice, line;

-- name: overrides_of
-- A tenant's overrides.
select coalesce(jsonb_object_agg(name, value), '{}')::text from plan_overrides where tenant = $1;

-- name: write_arranged
-- Keeps what the change that waits for the period's end brings.
update subscriptions set arranged = $2::text::jsonb where id = $1;

-- name: subscriptions_with_own_prices
-- Living subscriptions that go on, of tenants that have limits of their own or prices of their own.
select s.tenant, s.id, s.plan, s.next_plan, coalesce(s.schedule, '') as schedule, coalesce(s.arranged::text, '') as arranged,
    (select coalesce(jsonb_object_agg(o.name, o.value), '{}') from plan_overrides as o where o.tenant = s.tenant)::text
        as overrides,
    array(select coalesce(p.name, '') from subscription_items as i left join stripe_objects as p on p.id = i.price
        where i.subscription = s.id) as prices
from subscriptions as s
where s.status in ('active', 'trialing', 'past_due') and not s.cancel_at_period_end and s.cancel_at is null
    and (exists (select from plan_overrides as o where o.tenant = s.tenant and o.name = 'limits')
        or s.arranged is not null
        or exists (select from subscription_items as i join stripe_objects as p on p.id = i.price
            where i.subscription = s.id and p.name like '%:included:%'))
    and not exists (select from billing_changes as c where c.tenant = s.tenant and (c.ends > now() or c.work is not null))
order by s.tenant, s.id;
