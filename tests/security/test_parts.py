"""Every query of the program may be run by the parts that need it, no other part, and no right is there for nothing.

Postgres checks rights when it begins to execute, and explaining begins: so every query is asked about without doing it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Iterable
from typing import Any

import asyncpg
import pytest

from sidecar.ledger.queries import queries


def named(names: str) -> set[str]:
    """Queries by their names."""
    return set(names.split())


# What the flusher counts and sends is no business of control's.
FLUSHER_ONLY = named(
    """
    answer_flush claim_lanes count_lost_leases decided doubt_other_shards drop_drift drop_folded_partitions
    drop_tenant_limits end_reconciliation ensure_partitions fail_reconciliation fold_counters fold_delivered
    forget_undelivered forget_undelivered_of_lane free_reconciliation lane_verified look_again
    mark_plan_version_projected merge_counters move_rows raise_epoch record_fates release_lanes renew_ledger
    reserve_pace rest_lanes set_generation slow_pace take_flush take_reconciliation trust_shard unfold_windows
    write_deltas write_drift write_tenant_limits
    """
)
# What people and Stripe's webhooks change is no business of the flusher's.
CONTROL_ONLY = named(
    """
    ask_for_flush begin_billing_change bill_from_hour_of claim_events drop_customer drop_invoice drop_invoice_lines
    drop_old_events drop_override drop_subscription_items end_billing_change end_subscriptions event_told fail_events
    finish_events finish_intention forget_flush intention_failed invoice_lines_of link_customer plan_changes
    put_invoice put_invoice_lines put_off_subscription put_subscription put_subscription_items raise_items_since
    read_audit remember_prices replay_dead_events replay_event retire_stripe_objects revoke_key set_override
    store_event update_tenant webhook_backlog webhook_events write_arranged write_intention write_key
    write_plan_change write_plan_version write_standing write_stripe_objects
    """
)
# The clock moves in `sidecar dev` only, which logs in as the owner.
NOBODYS = {"set_clock_ahead"}
# No lock can be explained; updating tenants is the right that it takes.
NOT_EXPLAINED = {"lock_tenants"}
PARTS = {"sidecar_flusher": CONTROL_ONLY | NOBODYS, "sidecar_control": FLUSHER_ONLY | NOBODYS}
Right = tuple[str, str, str]


class Asked:
    """A ledger whose queries are prepared, to be explained as one role or the other."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._texts = {name: text for name, text in queries().items() if name not in NOT_EXPLAINED}

    async def prepare(self) -> None:
        for name, text in self._texts.items():
            await self.connection.execute(f"prepare q_{name} as {text.rstrip(';')}")

    def names(self, about: str = "") -> list[str]:
        """Every query, or those whose text has a word; a view or function may hide it."""
        return [name for name, text in self._texts.items() if about in text]

    async def refused(self, role: str, names: Iterable[str]) -> list[str]:
        """Which of these queries a role may not run."""
        return [name for name in names if not await self._may(role, name)]

    async def _may(self, role: str, name: str) -> bool:
        places = max([int(number) for number in re.findall(r"\$(\d+)", self._texts[name])], default=0)
        nothing = f"({', '.join(['null'] * places)})" if places else ""
        try:
            async with self.connection.transaction():
                await self.connection.execute(f"set local role {role}")
                await self.connection.execute(f"explain execute q_{name}{nothing}")
        except asyncpg.InsufficientPrivilegeError:
            return False
        return True


@pytest.fixture
async def asked(database: str) -> AsyncIterator[Asked]:
    connection = await asyncpg.connect(database, statement_cache_size=0)
    found = Asked(connection)
    await found.prepare()
    yield found
    await connection.close()


@pytest.mark.parametrize("role", sorted(PARTS))
async def test_a_part_may_run_its_own_queries_and_no_others(asked: Asked, role: str) -> None:
    """Whoever adds a query that one part has no right to: grant it, or name it above."""
    assert set(await asked.refused(role, asked.names())) == PARTS[role]


@pytest.mark.parametrize("role", ["sidecar_flusher", "sidecar_admin"])
async def test_who_flushes_may_leave_revisions_behind(asked: Asked, role: str) -> None:
    """What a function does to a sequence is not in its plan."""
    async with asked.connection.transaction():
        await asked.connection.execute(f"set local role {role}")
        await asked.connection.execute("execute q_leave_revisions_behind(1)")
        await asked.connection.execute("insert into tenants (id, plan, shard) values ('t', 'standard', 0)")
        await asked.connection.execute(f"execute q_outrun_revision('t', {2**40}, 1)")


@pytest.mark.parametrize("role", sorted(PARTS))
async def test_a_part_has_no_right_that_none_of_its_queries_needs(asked: Asked, role: str) -> None:
    granted = await rights(asked.connection, role)
    assert len(granted) > 50
    unused = []
    for right in granted:
        table, what, column = right
        mine = [name for name in asked.names(table) if name not in PARTS[role]]
        transaction = asked.connection.transaction()
        await transaction.start()
        await asked.connection.execute(f"revoke {what} {f'({column})' if column else ''} on {table} from {role}")
        if not await asked.refused(role, mine):
            unused.append(right)
        await transaction.rollback()
    assert unused == []


async def rights(connection: Any, role: str) -> list[Right]:
    """Table, right, and column where it is for one column only."""
    rows = await connection.fetch(
        "select c.relname, a.privilege_type, '' from pg_class as c, aclexplode(c.relacl) as a"
        " where a.grantee = $1::regrole and c.relkind in ('r', 'p', 'v') union all"
        " select c.relname, a.privilege_type, t.attname from pg_attribute as t"
        " join pg_class as c on c.oid = t.attrelid, aclexplode(t.attacl) as a"
        " where a.grantee = $1::regrole order by 1, 2, 3",
        role,
    )
    return [(str(table), str(what), str(column)) for table, what, column in rows]


NEVER = {
    "sidecar_flusher": (
        "insert into api_keys (sha256, tenant, shard) values ('0', 'acme', 0)",
        "update tenants set plan = 'enterprise'",
        "update tenants set status = 'active'",
        "insert into plan_versions default values",
        "update subscriptions set plan = 'enterprise'",
        "table audit_log",
        "table webhook_events",
    ),
    "sidecar_control": (
        "update usage_windows set amount = 0",
        "insert into usage_counters default values",
        "delete from stripe_outbox",
        "update stripe_outbox set amount = 0",
        "update shards set epoch = 0",
        "select fold_counters(0, 1)",
    ),
}
NEVER_ANYBODY = (
    "delete from audit_log",
    "update audit_log set actor = 'somebody else'",
    "delete from usage_counters",
    "delete from usage_windows",
    "delete from tenants",
    "insert into tenant_logins values ('me', 'acme')",
    "create table mine (id int)",
    "alter table tenants disable row level security",
    "drop table tenants",
    "set role sidecar_admin",
)


@pytest.mark.parametrize("role", sorted(PARTS))
async def test_what_a_login_of_a_part_may_never_do(database: str, role: str) -> None:
    connection = await asyncpg.connect(database)
    # Not only the role of the moment: a login that is a member of this group alone.
    login = f"only_{role}_{secrets.token_hex(4)}"
    await connection.execute(f"create role {login} login in role {role}")
    await connection.execute(f"set session authorization {login}")
    for statement in (*NEVER[role], *NEVER_ANYBODY):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.execute("reset session authorization")
    await connection.execute(f"drop role {login}")
    await connection.close()


@pytest.mark.parametrize("role", sorted(PARTS))
async def test_row_level_security_lets_a_part_see_every_tenant(asked: Asked, role: str) -> None:
    connection = asked.connection
    async with connection.transaction():
        for tenant in ("acme", "other"):
            await connection.execute("insert into tenants (id, plan, shard) values ($1, 'free', 0)", tenant)
        await connection.execute(f"set local role {role}")
        assert [row[0] for row in await connection.fetch("select id from tenants order by id")] == ["acme", "other"]
    missing = await connection.fetch(
        "select distinct table_name from information_schema.column_privileges as g"
        " join pg_class as c on c.relname = g.table_name and c.relkind in ('r', 'p') and c.relrowsecurity"
        " where grantee = $1 and not exists (select from pg_policies as p"
        " where p.tablename = g.table_name and $1 = any(p.roles))",
        role,
    )
    assert missing == []
