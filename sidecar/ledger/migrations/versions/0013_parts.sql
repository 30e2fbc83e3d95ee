-- What each part of the program may do, and nothing else (tests/security/test_parts.py asks for every right). Whoever
-- adds a query, table or column gives the parts that use it the right to do so in the same migration.

do $$
declare
    wanted text;
begin
    foreach wanted in array array['sidecar_flusher', 'sidecar_control'] loop
        if not exists (select from pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then
                    raise exception 'the roles sidecar_flusher and sidecar_control are missing and % may not create them', current_user
                        using errcode = '42501', hint = 'Let an administrator run: create role sidecar_flusher nologin; create role sidecar_control nologin;';
            end;
        end if;
    end loop;
end $$;

-- The flusher counts, projects to Redis, and sends to Stripe. It adds tenants that were counted before anybody put them. It
-- makes no key, plan or exception, changes no tenant's plan or status, and does not touch subscriptions and webhooks.
grant select on
    api_keys, billing_changes, billing_customers, flush_requests, former_customers, installation, invoices, metrics,
    plan_overrides, plan_versions, shards, stripe_drift, stripe_lanes, stripe_objects, stripe_outbox, stripe_pace,
    stripe_reconciliation, subscription_items, subscriptions, tenant_limits, tenants, usage_counters, usage_windows
    to sidecar_flusher;
grant insert, update on metrics, shards, stripe_lanes, stripe_outbox, usage_counters, usage_windows to sidecar_flusher;
grant insert, delete on stripe_drift, tenant_limits to sidecar_flusher;
grant insert on audit_log to sidecar_flusher;
grant delete on stripe_outbox to sidecar_flusher;
grant update on flush_requests, stripe_pace, stripe_reconciliation to sidecar_flusher;
grant insert (id, plan, origin, shard), update (interval_months, rev, projected_rev, updated) on tenants to sidecar_flusher;
grant update (projected_rev) on api_keys to sidecar_flusher;
grant update (projected) on plan_versions to sidecar_flusher;
grant update (looked, restored) on billing_customers to sidecar_flusher;
grant update (ledger_id, shards, metrics_known) on installation to sidecar_flusher;
grant usage on sequence revisions to sidecar_flusher;
grant execute on function ensure_partitions(int, timestamptz), drop_folded_partitions(), fold_counters(int, int)
    to sidecar_flusher;

-- Control changes tenants, keys, plans and subscriptions. What was counted it can read only.
grant select on
    api_keys, audit_log, billing_changes, billing_customers, flush_requests, former_customers, installation, invoice_lines,
    invoices, metrics, plan_changes, plan_overrides, plan_versions, shards, stripe_drift, stripe_lanes, stripe_objects,
    stripe_outbox, stripe_reconciliation, subscription_items, subscriptions, tenants, usage_counters, usage_windows,
    webhook_events
    to sidecar_control;
grant insert, update on
    api_keys, billing_changes, billing_customers, former_customers, invoices, metrics, plan_overrides, stripe_objects,
    subscription_items, subscriptions, tenants, webhook_events
    to sidecar_control;
grant insert on audit_log, flush_requests, invoice_lines, plan_changes, plan_versions to sidecar_control;
grant insert (tenant, metric, due, deadline, not_before), update (due, deadline, not_before) on stripe_lanes
    to sidecar_control;
grant delete on
    billing_changes, billing_customers, flush_requests, invoice_lines, invoices, plan_overrides, subscription_items,
    webhook_events
    to sidecar_control;
grant update (identifier, state, reason, attempt, tries, replays, first_sent, last_sent, look_at, delivered)
    on stripe_outbox to sidecar_control;
grant update (shards, metrics_known) on installation to sidecar_control;
grant usage on sequence revisions, stripe_looks to sidecar_control;

-- Row-level security lets a part see every tenant's rows, in the tables that it has rights on.
do $$
declare
    part text;
    t text;
begin
    foreach part in array array['sidecar_flusher', 'sidecar_control'] loop
        for t in
            select distinct g.table_name
            from information_schema.column_privileges as g
            join pg_class as c on c.relname = g.table_name and c.relnamespace = 'public'::regnamespace
            where g.grantee = part and g.table_schema = 'public' and c.relrowsecurity
        loop
            execute format('create policy %I on %I to %I using (true) with check (true)', part || '_all', t, part);
        end loop;
    end loop;
end $$;
