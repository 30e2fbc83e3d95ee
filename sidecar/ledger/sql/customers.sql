-- name: next_look
-- A number for what is seen at Stripe from here on; taken before Stripe is asked.
select nextval('stripe_looks');

-- name: customer_of
-- A tenant's customer at Stripe.
select tenant, customer, extract(epoch from created)::bigint from billing_customers where tenant = $1 and provider = 'stripe';

-- name: tenant_of_customer
-- The tenant that a customer at Stripe stands for.
select tenant from billing_customers where provider = 'stripe' and customer = $1;

-- name: link_customer
-- Makes a customer that of a tenant, unless one of the two has another already, and says whether they belong together now.
with linked as (
    insert into billing_customers (tenant, customer) values ($1, $2) on conflict do nothing returning true
)
select true from linked
union all
select true from billing_customers where tenant = $1 and customer = $2;

-- name: customers_in_line
-- Who has a customer among a tenant and those below it, and among a parent and those above that; usage counts for all of them.
with recursive below as (
    select id, 1 as depth from tenants where id = $1
    union all
    select t.id, b.depth + 1 from below as b join tenants as t on t.parent = b.id where b.depth < 16
), above as (
    select id, parent, 1 as depth from tenants where id = $2
    union all
    select t.id, t.parent, a.depth + 1 from above as a join tenants as t on t.id = a.parent where a.depth < 16
)
select
    (select min(c.tenant) from below as b join billing_customers as c on c.tenant = b.id) as below,
    (select min(c.tenant) from above as a join billing_customers as c on c.tenant = a.id) as above;

-- name: drop_customer
-- Forgets a customer that was deleted at Stripe, but whose it was; the tenant is not billed any more.
with gone as (
    delete from billing_customers where provider = 'stripe' and customer = $1 returning tenant, customer
)
insert into former_customers (customer, tenant) select customer, tenant from gone
on conflict (customer) do update set tenant = excluded.tenant, since = excluded.since
returning tenant;

-- name: tenant_of_former_customer
-- The tenant that a customer stood for before it was deleted.
select tenant from former_customers where customer = $1;

-- name: customer_key
-- What makes the next customer of a tenant another one than those before: which ledger this is, and how many there were.
select ledger_id::text, (select count(*) from former_customers where tenant = $1) from installation;

-- name: bill_from_hour_of
-- Has usage billed from the hour of a moment on, unless it is billed from earlier; only moments Stripe still takes events of.
update billing_customers
set billed_from = date_trunc('hour', to_timestamp($2::bigint), 'UTC'), looked = false
where tenant = $1 and billed_from > date_trunc('hour', to_timestamp($2::bigint), 'UTC')
    and to_timestamp($2::bigint) > ledger_now() - make_interval(secs => $3::int);

-- name: lock_standing
-- What billing gave a tenant last; locked until the transaction ends.
select customer, standing::text from billing_customers where tenant = $1 and provider = 'stripe' for update;

-- name: write_standing
-- Keeps what billing gave a tenant.
update billing_customers set standing = $2::text::jsonb, updated = ledger_now() where tenant = $1;
