-- Counters of windows that are long over are folded into the rows of their totals: sixteen bytes a writer in place of a row.

alter table usage_windows add column marks bytea check (octet_length(marks) % 16 = 0);
comment on column usage_windows.marks is
    'High-water marks of writers whose counters were folded: id and cumulative amount, eight bytes each; see marks_of().';

alter table shards add column folded_before timestamptz not null default 'epoch';
comment on column shards.folded_before is 'No window of this hour or later was ever folded; only grows.';

-- The counters that were folded into a window.
create function marks_of(marks bytea) returns table (writer text, amount bigint)
    language sql immutable strict parallel safe rows 4
    as $$
    select encode(substr(marks, at, 8), 'hex'), ('x' || encode(substr(marks, at + 8, 8), 'hex'))::bit(64)::bigint
    from generate_series(1, octet_length(marks), 16) as at
$$;

-- One mark a writer, the highest: a flusher of an earlier version may have put a counter beside a mark.
create function merged_marks(marks bytea) returns bytea language sql immutable strict parallel safe
    as $$
    select string_agg(decode(writer, 'hex') || int8send(amount), '' order by writer)
    from (select writer, max(amount) as amount from marks_of(marks) group by writer) as m
$$;

-- Windows of earlier hours may be folded. By then Redis has forgotten a window (49 hours after its own hour at the latest, if
-- the ledger has it), and a restore reads the counters of the last two hours.
create function fold_horizon() returns timestamptz language sql stable set search_path = public, pg_temp
    as $$ select date_trunc('hour', ledger_now(), 'UTC') - interval '72 hours' $$;

-- Folds at most so many counters of a shard, the oldest first, and returns how many; none while somebody else has the shard.
-- A counter goes in the statement that writes its mark. Security definer: nobody may delete what was counted.
create function fold_counters(of_shard int, most int) returns int
    language plpgsql security definer set search_path = public, pg_temp
    as $$
declare
    before timestamptz := fold_horizon();
    last usage_counters;
    folded int;
begin
    if most not between 1 and 1000000 then
        raise exception 'most is %, not 1 to 1000000', most using errcode = '22023';
    end if;
    -- The lock of a flusher's pass (LOCK_CLASS in sidecar/ledger/shard.py). A session that has it gets it once more.
    if not pg_try_advisory_xact_lock(1477, of_shard) then
        return 0;
    end if;
    -- A range of the key, so that one scan of its index is all there is to do, whatever the planner knows.
    select * into last from usage_counters as c where c.shard = of_shard and c.hour < before
    order by c.shard, c.hour, c.tenant, c.metric, c.scope, c.period, c.writer offset most - 1 limit 1;
    if not found then
        select * into last from usage_counters as c where c.shard = of_shard and c.hour < before
        order by c.shard desc, c.hour desc, c.tenant desc, c.metric desc, c.scope desc, c.period desc, c.writer desc limit 1;
    end if;
    with gone as (
        delete from usage_counters as c
        where c.shard = of_shard and c.hour <= last.hour and c.writer ~ '^[0-9a-f]{16}$'
            and (c.hour, c.tenant, c.metric, c.scope, c.period, c.writer)
                <= (last.hour, last.tenant, last.metric, last.scope, last.period, last.writer)
        returning c.*
    ), packed as (
        insert into usage_windows as w (tenant, metric, scope, period, hour, amount, marks)
        select tenant, metric, scope, period, hour, least(sum(amount), 9223372036854775807)::bigint,
            string_agg(decode(writer, 'hex') || int8send(amount), '' order by writer)
        from gone group by tenant, metric, scope, period, hour
        -- Every window that nobody meddled with has its total already, and marks if it is folded in two parts.
        on conflict (tenant, metric, scope, period, hour) do update set marks = case
            when w.marks is null then excluded.marks else merged_marks(w.marks || excluded.marks) end
    ), noted as (
        insert into shards as s (shard, folded_before)
        select of_shard, max(hour) + interval '1 hour' from gone having count(*) > 0
        on conflict (shard) do update set folded_before = greatest(s.folded_before, excluded.folded_before)
    )
    select count(*) into folded from gone;
    return folded;
end $$;

-- Drops months of usage_counters, up to the one before last, of which everything is folded; returns how many. A journal that
-- brings such a month back finds its marks, and its counters a place in the default partition. Gives up without a word
-- when it would have to wait for others: there is always a next time.
create function drop_folded_partitions() returns int
    language plpgsql security definer set search_path = public, pg_temp set lock_timeout = '500ms'
    as $$
declare
    part text;
    used boolean;
    dropped int := 0;
    before text := to_char(date_trunc('month', ledger_now() at time zone 'UTC') - interval '1 month', '"usage_counters_"YYYY"_"MM');
begin
    for part in
        select c.relname from pg_inherits as i join pg_class as c on c.oid = i.inhrelid
        where i.inhparent = 'usage_counters'::regclass and c.relname ~ '^usage_counters_\d{4}_\d{2}$' and c.relname < before
        order by 1
    loop
        execute format('select exists (select from %I)', part) into used;
        continue when used;
        begin
            lock table only usage_counters in access exclusive mode;
            execute format('lock table %I in access exclusive mode', part);
        exception when lock_not_available or deadlock_detected then
            return dropped;
        end;
        execute format('select exists (select from %I)', part) into used;
        continue when used;
        execute format('drop table %I', part);
        dropped := dropped + 1;
    end loop;
    return dropped;
end $$;

revoke execute on function fold_counters(int, int), drop_folded_partitions() from public;
grant execute on function fold_counters(int, int), drop_folded_partitions() to sidecar_admin;
