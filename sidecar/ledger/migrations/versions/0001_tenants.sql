-- Who may use the API, on which plan, with which keys; and what of it Redis does not know yet.
-- Ids are compared byte by byte (collate "C"): an id is no word of any language.

create table installation (
    only_row boolean primary key default true check (only_row),
    ledger_id uuid not null default gen_random_uuid(),
    shards int check (shards between 1 and 16384),
    clock_ahead interval not null default '0',
    created timestamptz not null default now()
);
comment on column installation.ledger_id is 'Part of every identifier sent to Stripe; renewed after a restore from a backup.';
comment on column installation.shards is 'Recorded at first use; a different setting is refused ever after.';
comment on column installation.clock_ahead is 'Moved by `sidecar dev` only.';
insert into installation default values;

-- The ledger's now, which `sidecar dev` can move. Security definer: a tenant may not read the installation.
create function ledger_now() returns timestamptz language sql stable security definer set search_path = public, pg_temp
    as $$ select now() + clock_ahead from installation $$;

create table shards (
    shard int primary key check (shard >= 0),
    epoch bigint not null default 0,
    generation text not null default '',
    updated timestamptz not null default now()
);

-- Every change that alters what Redis holds of a tenant or key takes the next value.
create sequence revisions as bigint;

create table plan_versions (
    revision bigint primary key check (revision > 0),
    document text not null,
    summary jsonb not null,
    actor text not null,
    created timestamptz not null default ledger_now(),
    projected boolean not null default false
);

create table tenants (
    id text collate "C" primary key check (octet_length(id) between 1 and 128),
    plan text collate "C" not null,
    status text not null default 'active'
        check (status in ('active', 'trialing', 'past_due', 'unpaid', 'cancelled', 'paused', 'suspended')),
    status_until timestamptz,
    parent text collate "C" references tenants (id) check (parent <> id),
    anchor timestamptz not null default 'epoch',
    interval_months int not null default 1 check (interval_months > 0),
    shadow boolean not null default false,
    origin text not null default 'put' check (origin in ('put', 'introduced')),
    shard int not null,
    rev bigint not null default nextval('revisions'),
    projected_rev bigint not null default 0,
    created timestamptz not null default ledger_now(),
    updated timestamptz not null default ledger_now()
);
comment on column tenants.interval_months is 'Of the plan as it was last projected.';
comment on column tenants.origin is 'introduced: counted before anybody put it, on the default plan.';
create index tenants_pending on tenants (shard, rev) where rev > projected_rev;
create index tenants_parent on tenants (parent) where parent is not null;
create index tenants_plan on tenants (plan, id);

create table api_keys (
    sha256 text collate "C" primary key check (sha256 ~ '^[0-9a-f]{64}$'),
    tenant text collate "C" not null references tenants (id),
    name text not null default '',
    prefix text not null,
    shard int not null,
    created timestamptz not null default ledger_now(),
    revoked_at timestamptz,
    rev bigint not null default nextval('revisions'),
    projected_rev bigint not null default 0
);
create index api_keys_tenant on api_keys (tenant);
create index api_keys_pending on api_keys (shard, rev) where rev > projected_rev;

create table plan_overrides (
    tenant text collate "C" not null references tenants (id),
    name text collate "C" not null,
    value jsonb not null,
    actor text not null,
    created timestamptz not null default ledger_now(),
    primary key (tenant, name)
);

create table plan_changes (
    id bigint generated always as identity primary key,
    tenant text collate "C" not null references tenants (id),
    at timestamptz not null default ledger_now(),
    from_plan text not null,
    to_plan text not null,
    actor text not null,
    reason text not null default ''
);
create index plan_changes_tenant on plan_changes (tenant, id);

-- The limits of the snapshot that Redis has, for functions, views and people. Amounts in base units.
create table tenant_limits (
    tenant text collate "C" not null references tenants (id),
    name text collate "C" not null,
    metric text collate "C" not null,
    period text not null
        check (period in ('second', 'minute', 'hour', 'day', 'month', 'billing', 'lifetime')),
    scope text not null check (scope in ('tenant', 'route', 'key', 'user')),
    included bigint check (included >= 0),
    stop bigint check (stop >= 0),
    beyond text not null check (beyond in ('deny', 'bill', 'credits', 'grace')),
    shadow boolean not null,
    primary key (tenant, name)
);
comment on column tenant_limits.included is 'null: unlimited';
comment on column tenant_limits.stop is 'Nothing is admitted from here on; null: nothing stops by amount.';

create table audit_log (
    id bigint generated always as identity primary key,
    at timestamptz not null default ledger_now(),
    actor text not null,
    action text not null,
    tenant text collate "C",
    detail jsonb not null
);
create index audit_log_tenant on audit_log (tenant, id);
