"""Roles, row-level security, functions and the quota view, seen through real logins."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidecar.catalogue.model import PERIODS, Period
from sidecar.catalogue.period import bounds
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.ledger import keys, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.migrate import current, migrate
from sidecar.ledger.shard import CounterRow

Login = Callable[..., Awaitable[Any]]
HIDDEN = [
    "table installation",
    "table shards",
    "table plan_versions",
    "table audit_log",
    "table stripe_outbox",
    "table webhook_events",
    "table tenant_logins",
]


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, shards=1)
    yield opened
    await opened.close()


@pytest.fixture
async def login(database: str) -> AsyncIterator[Login]:
    """Make a login of a group role and connect as it."""
    owner = await asyncpg.connect(database)
    opened: list[tuple[str, Any]] = []

    async def make(group: str, tenant: str = "") -> Any:
        name, password = f"u{secrets.token_hex(6)}", secrets.token_hex(8)
        await owner.execute(f"create role {name} login password '{password}' in role {group}")
        if tenant:
            await owner.execute("insert into tenant_logins values ($1, $2)", name, tenant)
        parts = urlsplit(database)
        connection = await asyncpg.connect(
            host=parts.hostname, port=parts.port, database=parts.path[1:], user=name, password=password
        )
        opened.append((name, connection))
        return connection

    yield make
    for name, connection in opened:
        await connection.close()
        await owner.execute(f"drop role {name}")
    await owner.close()


async def now(ledger: Ledger) -> int:
    async with ledger.transaction() as tx:
        return int(await tx._connection.fetchval("select extract(epoch from ledger_now())::bigint"))


def limit(name: str, *, metric: str = "api_calls", period: Period = "billing", **changes: Any) -> LimitRule:
    rule = LimitRule(name, metric, period, "tenant", (), 100, None, "grace", 0, "open", 0, shadow=False)
    for field, value in changes.items():
        rule = LimitRule(**{**{f: getattr(rule, f) for f in rule.__struct_fields__}, field: value})
    return rule


async def use(ledger: Ledger, tenant: str, amounts: dict[str, int], *limits: LimitRule, anchor_s: int = 0) -> None:
    """Put a tenant, project these limits and count amounts by scope in the running hour."""
    now_s = await now(ledger)
    async with ledger.transaction() as tx:
        row = await tenants.put(tx, tenant, plan="free", actor="op", anchor_s=anchor_s)
    async with ledger.shard(0) as shard:
        assert shard is not None
        snapshot = Snapshot(tenant, row.rev, "free", "active", 0, "", anchor_s, 1, {}, (), shadow=False, limits=limits)
        await shard.mark_projected([snapshot])
        period_s, _ = bounds("billing", now_s, anchor_s)
        await shard.merge(
            [
                CounterRow(tenant, "api_calls", scope, period_s, now_s // 3600, "w", amount)
                for scope, amount in amounts.items()
            ]
        )


async def test_a_tenants_login_sees_its_own_rows_and_nothing_else(ledger: Ledger, login: Login) -> None:
    await use(ledger, "acme", {"": 50}, limit("calls"))
    await use(ledger, "other", {"": 70}, limit("calls"))
    async with ledger.transaction() as tx:
        for tenant in ("acme", "other"):
            await keys.create(tx, tenant, actor="op", name=tenant)
            await tenants.change_plan(tx, tenant, "pro", actor="op")
    acme = await login("sidecar_tenant", "acme")
    for own in (
        "select id from tenants",
        "select tenant from usage_counters",
        "select tenant from usage_windows",
        "select tenant from tenant_limits",
        "select tenant from usage_quotas",
        "select tenant from plan_changes",
        "select tenant from api_keys",
    ):
        assert [row[0] for row in await acme.fetch(own)] == ["acme"], own
    assert await acme.fetchval("select get_current_usage('acme', 'api_calls')") == 50
    assert await acme.fetchval("select get_current_usage('other', 'api_calls')") == 0
    assert await acme.fetchval("select get_usage_percentage('other', 'api_calls')") is None
    await acme.execute("set sidecar.tenant = 'other'")
    assert [row[0] for row in await acme.fetch("select id from tenants")] == ["acme"], "a login chose its tenant itself"


@pytest.mark.parametrize(
    "statement",
    [
        *HIDDEN,
        "select sha256 from api_keys",
        "select * from usage_windows_default",
        "update tenants set plan = 'max'",
        "insert into usage_windows values ('acme', 'm', '', now(), now(), 1)",
        "delete from usage_counters",
        "select ensure_partitions(1, now())",
        "create table mine (id int)",
        "alter table tenants disable row level security",
    ],
)
async def test_a_tenants_login_may_not(ledger: Ledger, login: Login, statement: str) -> None:
    await use(ledger, "acme", {"": 50})
    connection = await login("sidecar_tenant", "acme")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)


async def test_an_applications_login_says_for_whom_it_reads(ledger: Ledger, login: Login) -> None:
    await use(ledger, "acme", {"": 50})
    await use(ledger, "other", {"": 70})
    application = await login("sidecar_tenant")
    assert await application.fetch("select * from tenants") == []
    for tenant, amount in (("acme", 50), ("other", 70)):
        async with application.transaction():
            await application.execute(f"set local sidecar.tenant = '{tenant}'")
            assert [tuple(row) for row in await application.fetch("select tenant, amount from usage_windows")] == [
                (tenant, amount)
            ]
    assert await application.fetch("select * from tenants") == []


async def test_an_administrators_login_does_a_flushers_whole_work_but_rewrites_no_record(
    database: str, ledger: Ledger, login: Login
) -> None:
    await use(ledger, "acme", {"": 50})
    admin = await login("sidecar_admin")
    name, parts = await admin.fetchval("select current_user"), urlsplit(database)
    owner = await asyncpg.connect(database)
    await owner.execute(f"alter role {name} password 'flusher'")
    await owner.close()
    flusher = await Ledger.open(f"postgresql://{name}:flusher@{parts.hostname}:{parts.port}{parts.path}", shards=1)
    await use(flusher, "other", {"": 1}, limit("calls"))
    assert await flusher.ensure_partitions(await now(flusher) + 400 * 86_400) > 0
    async with flusher.transaction() as tx:
        assert {row.tenant for row in await tenants.page(tx)} == {"acme", "other"}
    await flusher.close()
    for statement in (
        "delete from audit_log",
        "update audit_log set actor = ''",
        "delete from usage_counters",
        "drop table tenants",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await admin.execute(statement)


async def test_forced_row_level_security_binds_an_owner_who_is_no_superuser(empty_database: str) -> None:
    name, parts = f"owner{secrets.token_hex(6)}", urlsplit(empty_database)
    root = await asyncpg.connect(empty_database)
    await root.execute(f"create role {name} login createrole password 'x'")
    await root.execute(f"alter database {parts.path[1:]} owner to {name}")
    # The group roles may be there from another database; then their administrator has to let the owner in.
    if await root.fetchval("select exists (select from pg_roles where rolname = 'sidecar_admin')"):
        await root.execute(f"grant sidecar_admin to {name}")
    dsn = f"postgresql://{name}:x@{parts.hostname}:{parts.port}{parts.path}"
    assert await migrate(dsn) == await current(dsn)
    ledger = await Ledger.open(dsn, shards=1)
    await use(ledger, "acme", {"": 7}, limit("calls"))
    async with ledger.transaction() as tx:
        assert await tx._connection.fetchval("select get_current_usage('acme', 'api_calls')") == 7
    await ledger.close()
    assert await root.fetchval(
        "select bool_and(relrowsecurity and relforcerowsecurity) from pg_class"
        " where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace and not relispartition"
        " and relname <> 'alembic_version'"
    )
    await root.execute(f"reassign owned by {name} to current_user")
    await root.execute(f"drop owned by {name}")
    await root.execute(f"drop role {name}")
    await root.close()


async def test_quotas_say_what_is_used_what_is_left_and_what_is_over(ledger: Ledger, database: str) -> None:
    await use(
        ledger,
        "acme",
        {"": 80, "routes:search": 30, "routes:export": 10},
        limit("calls"),
        limit("hard", included=80, stop=80, period="month"),
        limit("open", included=None, period="lifetime"),
        limit("routes", included=20, scope="route", period="day"),
        limit("burst", period="minute", included=1),
        limit("tokens", metric="llm_tokens"),
    )
    connection = await asyncpg.connect(database)
    rows = await connection.fetch(
        "select limit_name, scope_value, used, remaining, percentage, over_quota from usage_quotas order by 1, 2"
    )
    assert [(*row[:4], None if row[4] is None else str(row[4]), row[5]) for row in rows] == [
        ("calls", "", 80, 20, "80.00", False),
        ("hard", "", 80, 0, "100.00", True),
        ("open", "", 80, None, None, False),
        ("routes", "export", 10, 10, "50.00", False),
        ("routes", "search", 30, 0, "150.00", True),
        ("tokens", "", 0, 100, "0.00", False),
    ]
    assert await connection.fetchval("select is_over_quota('acme', 'api_calls')") is True
    assert await connection.fetchval("select is_over_quota('acme', 'llm_tokens')") is False
    assert await connection.fetchval("select is_over_quota('nobody', 'api_calls')") is False
    assert str(await connection.fetchval("select get_usage_percentage('acme', 'api_calls')")) == "150.00"
    assert await connection.fetchval("select get_usage_percentage('nobody', 'api_calls')") is None
    await connection.close()


async def test_current_usage_is_that_of_the_running_billing_period_or_of_the_hours_asked_for(
    ledger: Ledger, database: str
) -> None:
    hour = await now(ledger) // 3600
    anchor_s = (hour - 10) * 3600 + 600
    await use(ledger, "acme", {"": 5}, anchor_s=anchor_s)
    before_s, _ = bounds("billing", anchor_s - 1, anchor_s)
    async with ledger.shard(0) as shard:
        assert shard is not None
        await shard.merge(
            [
                CounterRow("acme", "api_calls", "", before_s, hour - 10, "w", 100),
                CounterRow("acme", "api_calls", "", anchor_s, hour - 10, "w", 20),
                CounterRow("acme", "api_calls", "x:y", anchor_s, hour - 10, "w", 1000),
            ]
        )
    connection = await asyncpg.connect(database)

    async def usage(*hours: int) -> int:
        times = [datetime.fromtimestamp((hour + offset) * 3600, UTC) for offset in hours]
        arguments = "".join(f", ${number}" for number in range(1, len(times) + 1))
        return int(await connection.fetchval(f"select get_current_usage('acme', 'api_calls'{arguments})", *times))

    assert await usage() == 25
    assert await usage(-10) == 125
    assert await usage(-10, 0) == 120
    assert await usage(-9, 1) == 5
    await connection.close()


async def test_the_ledgers_clock_moves_periods_along(ledger: Ledger, database: str) -> None:
    await use(ledger, "acme", {"": 80}, limit("hard", included=80, stop=80, period="day"))
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("select is_over_quota('acme', 'api_calls')") is True
    before_s = await now(ledger)
    await ledger.set_clock_ahead(86_400)
    assert 86_400 <= await now(ledger) - before_s < 86_500
    assert await connection.fetchval("select is_over_quota('acme', 'api_calls')") is False
    await connection.close()


instants = st.integers(0, 4_102_444_800)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(period=st.sampled_from(PERIODS), at_s=instants, anchor_s=instants, months=st.sampled_from([1, 2, 3, 12]))
@example(period="billing", at_s=1_772_323_200, anchor_s=1_769_817_600, months=1)  # 1 March, anchored at 31 January
async def test_periods_in_sql_are_the_catalogues(
    ledger: Ledger, period: Period, at_s: int, anchor_s: int, months: int
) -> None:
    async with ledger.transaction() as tx:
        row = await tx._connection.fetchrow(
            "select extract(epoch from starts), case when ends < 'infinity' then extract(epoch from ends) end"
            " from period_bounds($1, to_timestamp($2::bigint), to_timestamp($3::bigint), $4)",
            period,
            at_s,
            anchor_s,
            months,
        )
    assert row is not None
    start_s, end_s = bounds(period, at_s, anchor_s, months)
    assert row[0] == start_s
    assert row[1] == (None if period == "lifetime" else end_s)
