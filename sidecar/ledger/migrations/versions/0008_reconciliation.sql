-- What the comparison of ledger and Stripe found.

-- The last comparison of the whole installation. Whoever has claimed it until a time (of the server's own clock) is the
-- only one that compares; a claim, not a lock held for hours, so that it works behind a PgBouncer and costs no connection.
create table stripe_reconciliation (
    only_row boolean primary key default true check (only_row),
    claim text not null default '',
    claimed_until timestamptz not null default 'epoch',
    began timestamptz,
    ended timestamptz,
    since timestamptz,
    failed timestamptz,
    lanes int not null default 0,
    unread int not null default 0,
    repaired int not null default 0,
    problem text not null default ''
);
comment on column stripe_reconciliation.unread is 'Lanes that Stripe would not tell about: a customer or meter that is gone.';
insert into stripe_reconciliation default values;

-- What differed when a lane was last compared. Amounts in base units of the metric.
create table stripe_drift (
    tenant text collate "C" not null references tenants (id),
    metric text collate "C" not null,
    span text not null check (span in ('day', 'period')),
    starts timestamptz not null,
    ends timestamptz not null,
    ledger bigint not null,
    delivered bigint not null,
    waiting bigint not null,
    in_doubt bigint not null,
    parked bigint not null,
    late bigint not null,
    stripe bigint not null,
    explained jsonb not null,
    matters boolean not null,
    seen timestamptz not null,
    primary key (tenant, metric, span, starts)
);
comment on column stripe_drift.explained is 'What each kind of explanation stands for; together stripe - ledger.';

do $$
declare
    t text;
begin
    foreach t in array array['stripe_reconciliation', 'stripe_drift'] loop
        execute format('alter table %I enable row level security', t);
        execute format('alter table %I force row level security', t);
        execute format('create policy admin_all on %I to sidecar_admin using (true) with check (true)', t);
        execute format('grant select, insert, update, delete on %I to sidecar_admin', t);
    end loop;
end $$;
