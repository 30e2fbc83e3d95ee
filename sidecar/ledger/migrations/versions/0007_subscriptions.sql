-- Customers, subscriptions, invoices and received events as Stripe has them. Nothing here is a secret, and of an event
-- only its envelope is kept: what it tells of is always fetched anew.

-- A look is a number taken before Stripe is asked. What was seen by a later look is never replaced by an earlier one, so
-- several processes may fetch the same object at once.
create sequence stripe_looks as bigint;

alter table billing_customers
    add column look bigint not null default 0,
    add column standing jsonb,
    add column updated timestamptz not null default ledger_now();
comment on column billing_customers.standing is
    'Plan, status and period that billing gave the tenant last; only a difference from it changes the tenant again.';

-- One change of a tenant's billing at a time, so that two of them never make two customers or two subscriptions.
create table billing_changes (
    tenant text collate "C" primary key references tenants (id),
    ends timestamptz not null
);
comment on column billing_changes.ends is 'By the real clock; a change whose process died frees the tenant then.';

alter table subscriptions
    add column customer text collate "C" not null default '',
    add column look bigint not null default 0,
    add column made timestamptz not null default ledger_now(),
    add column anchor timestamptz not null default 'epoch',
    add column interval_months int not null default 1 check (interval_months > 0),
    add column currency text not null default '',
    add column trial_end timestamptz,
    add column cancel_at_period_end boolean not null default false,
    add column ended timestamptz,
    add column ended_because text not null default '',
    add column schedule text collate "C",
    add column next_plan text collate "C" not null default '';
comment on column subscriptions.status is 'The word of Stripe; tenants.status has ours.';
comment on column subscriptions.plan is 'Empty: no price of it belongs to a plan that is known here.';
comment on column subscriptions.ended_because is 'Stripe''s reason of a cancellation: cancellation_requested, payment_disputed or payment_failed.';
comment on column subscriptions.next_plan is 'From the next period on, when a change waits for it.';
drop index subscriptions_tenant;
create index subscriptions_tenant on subscriptions (tenant, made);
create index subscriptions_living on subscriptions (updated) where status not in ('canceled', 'incomplete_expired');

alter table subscription_items
    add column plan text collate "C" not null default '',
    add column quantity bigint;
create index subscription_items_subscription on subscription_items (subscription);

alter table webhook_events
    add column thin boolean not null default false,
    add column customer text collate "C" not null default '',
    add column made timestamptz not null default ledger_now(),
    add column state text not null default 'waiting' check (state in ('waiting', 'handled', 'dead')),
    add column tries int not null default 0,
    add column next_try timestamptz not null default now(),
    add column problem text not null default '';
comment on column webhook_events.made is 'When Stripe made it; two with one object, kind and time tell of one occurrence.';
comment on column webhook_events.next_try is 'By the real clock; while an event is worked on, when it is given up for lost.';
create index webhook_events_waiting on webhook_events (next_try) where state = 'waiting';
create index webhook_events_object on webhook_events (object, kind, made);
create index webhook_events_dead on webhook_events (received) where state = 'dead';
create index webhook_events_handled on webhook_events (handled) where state = 'handled';

alter table invoices
    add column look bigint not null default 0,
    add column customer text collate "C" not null default '',
    add column subscription text collate "C" not null default '',
    add column invoice_number text not null default '',
    add column reason text not null default '',
    add column subtotal numeric not null default 0,
    add column tax numeric not null default 0,
    add column amount_due numeric not null default 0,
    add column amount_paid numeric not null default 0,
    add column amount_remaining numeric not null default 0,
    add column made timestamptz not null default ledger_now(),
    add column owed_since timestamptz,
    add column due timestamptz,
    add column paid timestamptz,
    add column attempts int not null default 0,
    add column next_attempt timestamptz,
    add column hosted_url text not null default '',
    add column pdf_url text not null default '';
comment on column invoices.status is 'The word of Stripe: draft, open, paid, uncollectible or void.';
comment on column invoices.owed_since is 'When it became due (or was finalized); the grace of a past-due tenant counts from here.';
create index invoices_open on invoices (subscription) where status = 'open';
drop index invoices_tenant;
create index invoices_tenant on invoices (tenant, made, id);

alter table invoice_lines
    add column id text collate "C" not null default '',
    add column description text not null default '',
    add column price text collate "C" not null default '',
    add column currency text not null default '',
    add column unit_amount numeric,
    add column period_start timestamptz,
    add column period_end timestamptz,
    add column proration boolean not null default false,
    alter column quantity type numeric;
comment on column invoice_lines.unit_amount is 'In the minor unit, up to twelve decimal places; null for a tier''s flat amount.';

alter table billing_changes enable row level security;
alter table billing_changes force row level security;
create policy admin_all on billing_changes to sidecar_admin using (true) with check (true);
grant select, insert, update, delete on billing_changes to sidecar_admin;
grant usage on sequence stripe_looks to sidecar_admin;
