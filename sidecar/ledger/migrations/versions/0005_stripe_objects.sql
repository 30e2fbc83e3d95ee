-- Ids of what `sidecar stripe setup` made at Stripe. A row stays when its object was replaced, since subscriptions may
-- still name it: only `current` says what new ones get.

create table stripe_objects (
    id text collate "C" primary key,
    kind text not null check (kind in ('meter', 'product', 'price')),
    name text collate "C" not null,
    plan text collate "C" not null default '',
    metric text collate "C" not null default '',
    event_name text collate "C" not null default '',
    interval_months int not null default 0,
    current boolean not null default true,
    created timestamptz not null default ledger_now(),
    updated timestamptz not null default ledger_now()
);
create unique index stripe_objects_current on stripe_objects (kind, name) where current;

alter table stripe_objects enable row level security;
alter table stripe_objects force row level security;
create policy admin_all on stripe_objects to sidecar_admin using (true) with check (true);
grant select, insert, update, delete on stripe_objects to sidecar_admin;
