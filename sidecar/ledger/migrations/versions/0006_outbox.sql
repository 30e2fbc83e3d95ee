-- The outbox grows lanes, fates and the means to settle what is in doubt.

-- Nothing was ever written to the table before this revision, so columns without a default are no obstacle.
drop index stripe_outbox_open;
alter table stripe_outbox drop constraint stripe_outbox_state_check;
alter table stripe_outbox
    add column value numeric not null,
    add column deadline timestamptz not null,
    add column late boolean not null default false,
    add column adopted boolean not null default false,
    add column attempt int not null default 1 check (attempt >= 0),
    add column tries int not null default 0,
    add column replays int not null default 0,
    add column first_sent timestamptz,
    add column last_sent timestamptz,
    add column look_at timestamptz,
    add column delivered timestamptz,
    add constraint stripe_outbox_state_check
        check (state in ('waiting', 'sending', 'delivered', 'in_doubt', 'parked')),
    add constraint stripe_outbox_fate_check check (
        (state <> 'sending' or first_sent is not null) and (state <> 'in_doubt' or look_at is not null)
        and (state <> 'delivered' or delivered is not null));
comment on column stripe_outbox.value is 'What is sent: the amount in whole units, fixed with the row.';
comment on column stripe_outbox.deadline is 'When the period that `at` lies in is closed: an event that comes later is on no invoice.';
comment on column stripe_outbox.late is 'Of a period that was closed, or too old to be sent: `at` lies in the period after it.';
comment on column stripe_outbox.adopted is 'Found at Stripe after the ledger was restored from a backup; never sent by this ledger.';
comment on column stripe_outbox.attempt is 'Raised when it is certain that nothing arrived; a new identifier comes with it.';
comment on column stripe_outbox.replays is 'Answers that Stripe keeps and would repeat: part of the idempotency key, not of the identifier.';
comment on column stripe_outbox.first_sent is 'First call whose fate is not known to be "no effect"; null when none is.';
comment on column stripe_outbox.look_at is 'When the summaries are to be asked (again) about a row in doubt.';

-- What a lane has to do, in the order of doing; which timestamps it uses; what an operator has to look at.
create index stripe_outbox_open on stripe_outbox (tenant, metric, deadline, hour, number)
    where state in ('waiting', 'sending', 'in_doubt');
create index stripe_outbox_at on stripe_outbox (tenant, metric, at);
create index stripe_outbox_parked on stripe_outbox (tenant, metric) where state = 'parked';

-- One lane for each customer and meter: Stripe takes one call at a time for it. Whoever has claimed a lane until a time
-- (of the server's own clock: a claim is about processes, not about usage) is alone in it.
create table stripe_lanes (
    tenant text collate "C" not null references tenants (id),
    metric text collate "C" not null,
    due timestamptz,
    deadline timestamptz not null default 'infinity',
    not_before timestamptz,
    failures int not null default 0,
    claim text,
    claimed_until timestamptz,
    verified timestamptz,
    primary key (tenant, metric)
);
comment on column stripe_lanes.due is 'When there is something to do; null: nothing.';
comment on column stripe_lanes.deadline is 'The earliest of its open rows: lanes whose period closes first go first.';
comment on column stripe_lanes.verified is 'When the lane was last compared with Stripe after a restore from a backup.';
create index stripe_lanes_due on stripe_lanes (deadline, due) where due is not null;

-- The pace of all forwarders together: calls are handed out one after the other in time.
create table stripe_pace (
    only_row boolean primary key default true check (only_row),
    next_free timestamptz not null default 'epoch',
    permille int not null default 1000 check (permille between 1 and 1000),
    changed timestamptz not null default 'epoch'
);
comment on column stripe_pace.permille is 'Share of the configured calls a second; falls when Stripe asks to slow down, and recovers.';
insert into stripe_pace default values;

alter table shards
    add column touched_from timestamptz,
    add column decided timestamptz not null default 'epoch',
    add column metered text[] collate "C" not null default '{}';
comment on column shards.touched_from is 'The earliest hour that grew since its deltas were decided; null: none did.';
comment on column shards.metered is 'Metrics that had a meter when deltas were last decided.';

alter table billing_customers
    add column billed_from timestamptz not null default date_trunc('hour', ledger_now(), 'UTC'),
    add column items_since timestamptz,
    add column looked boolean not null default false,
    add column restored timestamptz;
comment on column billing_customers.billed_from is 'Windows that begin earlier are not sent to Stripe.';
comment on column billing_customers.items_since is 'Since when its subscription has the metered items of now; null: they came with it.';
comment on column billing_customers.looked is 'Whether windows that were counted before this customer was known have been looked at.';
comment on column billing_customers.restored is 'When the ledger was last found to be older than Stripe: compare before anything new is sent.';

do $$
declare
    t text;
begin
    foreach t in array array['stripe_lanes', 'stripe_pace'] loop
        execute format('alter table %I enable row level security', t);
        execute format('alter table %I force row level security', t);
        execute format('create policy admin_all on %I to sidecar_admin using (true) with check (true)', t);
        execute format('grant select, insert, update, delete on %I to sidecar_admin', t);
    end loop;
end $$;
