-- What people and their tools may read: periods, functions, the quota view, roles and row-level security.

-- The period of a limit that holds an instant, as sidecar/catalogue/period.py has it (a test compares the two).
-- Billing periods are always counted from the original anchor, so one that began on the 31st comes back to the 31st.
create function period_bounds(period text, at timestamptz, anchor timestamptz, interval_months int)
    returns table (starts timestamptz, ends timestamptz) language plpgsql immutable
    as $$
declare
    utc timestamp := at at time zone 'UTC';
    origin timestamp := case when period = 'billing' then anchor at time zone 'UTC' else 'epoch'::timestamp end;
    step int := case when period = 'billing' then interval_months else 1 end;
    passed int;
begin
    if period in ('second', 'minute', 'hour', 'day') then
        starts := date_trunc(period, utc) at time zone 'UTC';
        ends := (date_trunc(period, utc) + ('1 ' || period)::interval) at time zone 'UTC';
    elsif period = 'lifetime' then
        starts := 'epoch';
        ends := 'infinity';
    elsif period in ('month', 'billing') then
        passed := (extract(year from utc)::int - extract(year from origin)::int) * 12
            + extract(month from utc)::int - extract(month from origin)::int;
        passed := floor(passed::numeric / step)::int * step;
        if origin + make_interval(months => passed) > utc then
            passed := passed - step;
        end if;
        starts := (origin + make_interval(months => passed)) at time zone 'UTC';
        ends := (origin + make_interval(months => passed + step)) at time zone 'UTC';
    else
        raise exception 'there is no period %', period using errcode = '22023';
    end if;
    return next;
end $$;

-- A tenant's usage of a metric in whole hours that touch [from_time, to_time); without times in its running billing period.
create function get_current_usage(
    tenant text, metric text, from_time timestamptz default null, to_time timestamptz default null
) returns bigint language sql stable
    as $$
    select coalesce(sum(w.amount), 0)::bigint
    from tenants as t
    cross join lateral period_bounds('billing', ledger_now(), t.anchor, t.interval_months) as p
    join usage_windows as w on w.tenant = t.id
    where t.id = $1 and w.metric = $2 and w.scope = ''
        and w.hour >= date_trunc('hour', coalesce(from_time, p.starts), 'UTC')
        and w.hour < coalesce(to_time, p.ends)
        and (from_time is not null or to_time is not null or w.period = p.starts)
$$;

-- Every limit of a tenant that the ledger can tell (an hour and longer), with what its running period has used. A scoped
-- limit has one row per scope that was used.
create view usage_quotas with (security_invoker = true) as
select
    l.tenant, t.plan, t.status, l.name as limit_name, l.metric, l.period, l.scope,
    coalesce(substr(u.scope, length(l.name) + 2), '') as scope_value,
    p.starts as period_start, p.ends as period_end,
    coalesce(u.used, 0) as used, l.included, l.stop,
    case when l.included is not null then greatest(l.included - coalesce(u.used, 0), 0) end as remaining,
    case when l.included > 0 then round(coalesce(u.used, 0) * 100.0 / l.included, 2)
         when l.included = 0 then 100.00 end as percentage,
    (coalesce(u.used, 0) > l.included) is true or (coalesce(u.used, 0) >= l.stop) is true as over_quota,
    l.shadow
from tenant_limits as l
join tenants as t on t.id = l.tenant
cross join lateral period_bounds(l.period, ledger_now(), t.anchor, t.interval_months) as p
left join lateral (
    select w.scope, sum(w.amount)::bigint as used
    from usage_windows as w
    where w.tenant = l.tenant and w.metric = l.metric
        and case when l.scope = 'tenant' then w.scope = '' else w.scope >= l.name || ':' and w.scope < l.name || ';' end
        and w.hour >= date_trunc('hour', p.starts, 'UTC') and w.hour < p.ends
        and (l.period <> 'billing' or w.period = p.starts)
    group by w.scope
) as u on true
where l.period not in ('second', 'minute');

-- Whether a limit of the metric is used beyond what it includes, or up to where nothing more is admitted.
create function is_over_quota(tenant text, metric text) returns boolean language sql stable
    as $$ select coalesce(bool_or(q.over_quota), false) from usage_quotas as q where q.tenant = $1 and q.metric = $2 $$;

-- Percent used of the tightest limit of the metric; null when it is unlimited or has none.
create function get_usage_percentage(tenant text, metric text) returns numeric language sql stable
    as $$ select max(q.percentage) from usage_quotas as q where q.tenant = $1 and q.metric = $2 $$;

-- A database login handed to a customer. Its tenant is fixed here: the setting sidecar.tenant, which anybody can set,
-- counts only for logins that are not listed (an application that acts for many tenants).
create table tenant_logins (
    login name primary key,
    tenant text collate "C" not null references tenants (id)
);
create function session_tenant() returns text language sql stable security definer set search_path = public, pg_temp
    as $$
    select coalesce(
        (select tenant from tenant_logins where login = session_user),
        nullif(current_setting('sidecar.tenant', true), ''))
$$;

-- Group roles of the whole server, so another database may just be making them too.
do $$
declare
    wanted text;
begin
    foreach wanted in array array['sidecar_admin', 'sidecar_tenant'] loop
        if not exists (select from pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then
                    raise exception 'the roles sidecar_admin and sidecar_tenant are missing and % may not create them', current_user
                        using errcode = '42501', hint = 'Let an administrator run: create role sidecar_admin nologin; create role sidecar_tenant nologin;';
            end;
        end if;
    end loop;
    -- Forced row-level security binds the owner too; the owner is an administrator.
    if not pg_has_role(current_user, 'sidecar_admin', 'usage') then
        execute format('grant sidecar_admin to %I', current_user);
    end if;
end $$;

do $$
declare
    t text;
    owned text[] := array[
        'plan_overrides', 'plan_changes', 'tenant_limits', 'usage_counters', 'usage_windows', 'usage_events', 'usage_levels',
        'usage_alerts', 'billing_customers', 'subscriptions', 'subscription_items', 'invoices', 'invoice_lines',
        'credit_grants', 'credit_entries', 'api_keys'];
    hidden text[] := array[
        'installation', 'shards', 'plan_versions', 'audit_log', 'stripe_outbox', 'webhook_events', 'tenant_logins'];
begin
    foreach t in array owned || hidden || array['tenants'] loop
        execute format('alter table %I enable row level security', t);
        execute format('alter table %I force row level security', t);
        execute format('create policy admin_all on %I to sidecar_admin using (true) with check (true)', t);
        execute format('grant select, insert, update, delete on %I to sidecar_admin', t);
    end loop;
    foreach t in array owned loop
        execute format('create policy tenant_own on %I for select to sidecar_tenant using (tenant = (select session_tenant()))', t);
    end loop;
    -- A key's hash is nobody's to read.
    foreach t in array array_remove(owned, 'api_keys') loop
        execute format('grant select on %I to sidecar_tenant', t);
    end loop;
end $$;
create policy tenant_own on tenants for select to sidecar_tenant using (id = (select session_tenant()));
grant select on tenants, usage_quotas to sidecar_tenant;
grant select (tenant, name, prefix, created, revoked_at) on api_keys to sidecar_tenant;
grant select on usage_quotas, alembic_version to sidecar_admin;
-- Nobody rewrites what was done, nor what was counted.
revoke update, delete on audit_log from sidecar_admin;
revoke delete on usage_counters, usage_windows from sidecar_admin;
grant usage on sequence revisions to sidecar_admin;

revoke execute on function ensure_partitions(int, timestamptz) from public;
grant execute on function ensure_partitions(int, timestamptz) to sidecar_admin;
