-- Changes of subscriptions that can be finished by whoever comes after a crash, flushes that one process asks of
-- another, and customers that are no more.

-- What a change of a tenant's billing is about to do at Stripe, noted before the first call. A row without it is only
-- the mark that keeps other changes out.
alter table billing_changes
    add column work jsonb,
    add column begun timestamptz,
    add column tries int not null default 0,
    add column next_try timestamptz not null default now(),
    add column problem text not null default '';
comment on column billing_changes.work is 'The whole intention; what of it was done already is seen at Stripe.';
create index billing_changes_unfinished on billing_changes (next_try) where work is not null;

-- The included amounts that a change which waits for the period's end brings, and the schedule that brings it.
alter table subscriptions add column arranged jsonb;

-- Asked by a process that changes subscriptions, answered by one that sends usage.
create table flush_requests (
    id uuid primary key default gen_random_uuid(),
    tenant text collate "C" not null references tenants (id),
    asked timestamptz not null default now(),
    taken timestamptz,
    remaining int
);
comment on column flush_requests.remaining is 'How many deltas Stripe does not have after the flush; null until it is answered.';
create index flush_requests_open on flush_requests (asked) where remaining is null;

-- Stripe tells of the last invoices of a customer after it is deleted.
create table former_customers (
    customer text collate "C" primary key,
    tenant text collate "C" not null references tenants (id),
    since timestamptz not null default ledger_now()
);
create index former_customers_tenant on former_customers (tenant);
insert into former_customers (customer, tenant)
select distinct on (s.customer) s.customer, s.tenant from subscriptions as s
where s.customer <> '' and not exists (select from billing_customers as b where b.customer = s.customer)
order by s.customer, s.made desc;

do $$
declare
    t text;
begin
    foreach t in array array['flush_requests', 'former_customers'] loop
        execute format('alter table %I enable row level security', t);
        execute format('alter table %I force row level security', t);
        execute format('create policy admin_all on %I to sidecar_admin using (true) with check (true)', t);
        execute format('grant select, insert, update, delete on %I to sidecar_admin', t);
    end loop;
end $$;
