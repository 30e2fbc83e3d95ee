-- Usage that nobody pays for, metrics that ever were, and deliveries that are folded.

-- What a metric is called and counted in, once a catalogue had it. Amounts in the ledger are in its base unit for good.
create table metrics (
    metric text collate "C" primary key,
    kind text not null,
    scale int not null,
    revision bigint not null
);
comment on table metrics is 'Metrics of all catalogues that were ever in force, as the newest of them had each.';
comment on column metrics.scale is 'Decimal places of the base unit; never changes, since amounts are kept in it.';
alter table installation add column metrics_known bigint not null default 0;
comment on column installation.metrics_known is 'The newest catalogue revision whose metrics are in the table.';

alter table subscriptions add column trial_start timestamptz;

-- From when on, at the earliest, a tenant owes what it uses at a moment or after it: the moment itself while a
-- subscription bills it, the end of a trial or the start of a subscription that comes later, null when none does.
create function billable_from(tenant text, moment timestamptz) returns timestamptz language sql stable
    as $$
    select min(greatest(span.starts, $2))
    from subscriptions as s
    cross join lateral (values
        (s.made, case when s.trial_end is not null then greatest(coalesce(s.trial_start, s.made), s.made) end),
        (coalesce(s.trial_end, 'infinity'), null)
    ) as span (starts, ends)
    where s.tenant = $1 and s.status not in ('incomplete', 'incomplete_expired')
        and span.starts < coalesce(s.ended, 'infinity') and $2 < coalesce(least(span.ends, s.ended), 'infinity')
        and span.starts < coalesce(span.ends, 'infinity')
$$;

alter table stripe_outbox
    drop constraint stripe_outbox_state_check,
    add column folded int not null default 0 check (folded >= 0),
    add constraint stripe_outbox_state_check
        check (state in ('waiting', 'sending', 'delivered', 'in_doubt', 'parked', 'unbillable'));
comment on column stripe_outbox.folded is 'How many rows of the window this one stands for beside itself.';

alter table stripe_lanes add column folded_to timestamptz not null default 'epoch';
comment on column stripe_lanes.folded_to is 'What was delivered with an earlier timestamp is folded.';
create index stripe_lanes_folded on stripe_lanes (folded_to);

do $$
declare
    t text;
begin
    foreach t in array array['metrics'] loop
        execute format('alter table %I enable row level security', t);
        execute format('alter table %I force row level security', t);
        execute format('create policy admin_all on %I to sidecar_admin using (true) with check (true)', t);
        execute format('grant select, insert, update, delete on %I to sidecar_admin', t);
    end loop;
end $$;
