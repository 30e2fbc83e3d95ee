-- What billing keeps. Every row names its tenant, so that one policy guards them all. Money is exact: numeric, in the
-- currency's minor unit.

create table billing_customers (
    tenant text collate "C" primary key references tenants (id),
    provider text not null default 'stripe',
    customer text collate "C" not null,
    created timestamptz not null default ledger_now(),
    unique (provider, customer)
);

create table subscriptions (
    id text collate "C" primary key,
    tenant text collate "C" not null references tenants (id),
    plan text collate "C" not null,
    status text not null,
    cancel_at timestamptz,
    created timestamptz not null default ledger_now(),
    updated timestamptz not null default ledger_now()
);
create index subscriptions_tenant on subscriptions (tenant);

create table subscription_items (
    id text collate "C" primary key,
    subscription text collate "C" not null references subscriptions (id),
    tenant text collate "C" not null references tenants (id),
    metric text collate "C",
    price text collate "C" not null,
    period_start timestamptz,
    period_end timestamptz
);
create index subscription_items_tenant on subscription_items (tenant);

-- Numbered deltas of a window; the amount is decided in the transaction that writes the row.
create table stripe_outbox (
    tenant text collate "C" not null references tenants (id),
    metric text collate "C" not null,
    period timestamptz not null,
    hour timestamptz not null,
    number int not null check (number > 0),
    amount bigint not null,
    identifier text collate "C" not null unique check (octet_length(identifier) <= 100),
    at timestamptz not null,
    state text not null default 'waiting' check (state in ('waiting', 'sent', 'delivered', 'parked')),
    reason text not null default '',
    created timestamptz not null default ledger_now(),
    primary key (tenant, metric, period, hour, number)
);
create index stripe_outbox_open on stripe_outbox (created) where state in ('waiting', 'sent');

create table webhook_events (
    id text collate "C" primary key,
    kind text not null,
    object text collate "C" not null,
    received timestamptz not null default ledger_now(),
    handled timestamptz
);

create table invoices (
    id text collate "C" primary key,
    tenant text collate "C" not null references tenants (id),
    period_start timestamptz not null,
    period_end timestamptz not null,
    status text not null,
    currency text not null,
    total numeric not null,
    created timestamptz not null default ledger_now()
);
create index invoices_tenant on invoices (tenant, period_start);

create table invoice_lines (
    invoice text collate "C" not null references invoices (id),
    line int not null,
    tenant text collate "C" not null references tenants (id),
    metric text collate "C",
    quantity bigint not null,
    amount numeric not null,
    primary key (invoice, line)
);
create index invoice_lines_tenant on invoice_lines (tenant);

create table credit_grants (
    id text collate "C" primary key,
    tenant text collate "C" not null references tenants (id),
    amount bigint not null check (amount > 0),
    expires timestamptz,
    reason text not null default '',
    created timestamptz not null default ledger_now()
);
create index credit_grants_tenant on credit_grants (tenant);

create table credit_entries (
    id bigint generated always as identity primary key,
    tenant text collate "C" not null references tenants (id),
    credit_grant text collate "C" references credit_grants (id),
    amount bigint not null,
    reason text not null default '',
    created timestamptz not null default ledger_now()
);
create index credit_entries_tenant on credit_entries (tenant, id);
