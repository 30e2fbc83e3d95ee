from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from sidecar.embedded import EmbeddedPostgres, free_port
from sidecar.errors import LedgerRefused, LedgerUnavailable, SidecarError
from sidecar.ledger import tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.migrate import migrate
from sidecar.ledger.shard import CounterRow
from sidecar.ledger.transaction import driver_errors

FreshPostgres = Callable[[], Awaitable[EmbeddedPostgres]]
ROW = CounterRow("acme", "api_calls", "", 0, 497_000, "w", 5)


async def test_a_ledger_opens_while_postgres_is_away(database: str) -> None:
    ledger = await Ledger.open(f"postgresql://nobody@127.0.0.1:{free_port()}/none", timeout_s=2)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable) as raised:
            async with ledger.transaction():
                pass
        assert raised.value.transient
    await ledger.close()


async def test_a_ledger_comes_back_with_postgres_and_keeps_what_was_committed(fresh_postgres: FreshPostgres) -> None:
    server = await fresh_postgres()
    await migrate(server.dsn)
    ledger = await Ledger.open(server.dsn, shards=1, timeout_s=10)
    async with ledger.shard(0) as tx:
        assert tx is not None
        await tx.merge([ROW], "free")

    async def interrupted() -> None:
        async with ledger.shard(0) as tx:
            assert tx is not None
            await tx.merge([ROW], "free")
            await server.stop()
            await tx.raise_epoch()

    with pytest.raises(LedgerUnavailable):
        await interrupted()
    with pytest.raises(LedgerUnavailable):
        async with ledger.transaction():
            pass
    await server.start()
    async with ledger.shard(0) as tx:
        assert tx is not None
        assert (await tx.state()).epoch == 0
        assert await tx.merge([ROW], "free") == 0
    await ledger.close()


async def test_a_backend_killed_in_a_pass_is_unavailable_and_frees_its_shard(database: str) -> None:
    ledger = await Ledger.open(database, shards=1)
    async with ledger.transaction():
        pass
    admin = await asyncpg.connect(database)

    async def interrupted() -> None:
        async with ledger.shard(0) as tx:
            assert tx is not None
            pid = await tx._connection.fetchval("select pg_backend_pid()")
            await admin.execute("select pg_terminate_backend($1, 5000)", pid)
            await tx.merge([ROW], "free")

    with pytest.raises(LedgerUnavailable):
        await interrupted()
    async with ledger.shard(0) as tx:
        assert tx is not None
        assert await tx.merge([ROW], "free") == 1
    await admin.close()
    await ledger.close()


async def test_a_statement_that_hangs_is_given_up_in_time(database: str) -> None:
    ledger = await Ledger.open(database, shards=1, timeout_s=1)
    async with ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor="op")
    blocker = await asyncpg.connect(database)
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("lock table tenants")
    with pytest.raises(LedgerUnavailable):
        async with ledger.transaction() as tx:
            await tenants.put(tx, "acme", plan="pro", actor="op")
    await transaction.rollback()
    async with ledger.transaction() as tx:
        assert (await tenants.show(tx, "acme")).plan == "free"
    await blocker.close()
    await ledger.close()


async def test_more_work_than_connections_waits_its_turn(database: str) -> None:
    ledger = await Ledger.open(database, shards=1, connections_max=2)

    async def work(number: int) -> None:
        async with ledger.transaction() as tx:
            await tenants.put(tx, f"t{number}", plan="free", actor="op")

    await asyncio.gather(*(work(number) for number in range(20)))
    async with ledger.transaction() as tx:
        assert len(await tenants.page(tx)) == 20
    await ledger.close()


async def test_a_pass_works_without_prepared_statements(database: str) -> None:
    """As behind a PgBouncer that pools by transaction."""
    ledger = await Ledger.open(database, shards=1, prepared=False)
    async with ledger.shard(0) as tx:
        assert tx is not None
        assert await tx.merge([ROW], "free") == 1
        assert await tx.recent_counters(0) == [ROW]
        assert await tx._connection.fetchval("select count(*) from pg_prepared_statements where name <> ''") == 0
    await ledger.close()


async def test_what_can_never_be_sent_is_refused_and_does_not_break_the_connection(database: str) -> None:
    ledger = await Ledger.open(database, shards=1, connections_max=1)

    async def merge(amount: int, tenant: str) -> None:
        async with ledger.shard(0) as tx:
            assert tx is not None
            await tx.merge([CounterRow(tenant, "api_calls", "", 0, 497_000, "w", amount)], "free")

    for amount, tenant in ((2**63, "acme"), (-1, "acme"), (1, "x" * 129)):
        with pytest.raises(LedgerRefused) as raised:
            await merge(amount, tenant)
        assert not raised.value.transient
    async with ledger.shard(0) as tx:
        assert tx is not None
        assert await tx.merge([ROW], "free") == 1
    await ledger.close()


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (asyncpg.CannotConnectNowError("starting up"), LedgerUnavailable),
        (asyncpg.AdminShutdownError("bye"), LedgerUnavailable),
        (asyncpg.TooManyConnectionsError("full"), LedgerUnavailable),
        (asyncpg.DeadlockDetectedError("knot"), LedgerUnavailable),
        (asyncpg.ReadOnlySQLTransactionError("standby"), LedgerUnavailable),
        (asyncpg.ConnectionDoesNotExistError("gone"), LedgerUnavailable),
        (asyncpg.InterfaceError("closed"), LedgerUnavailable),
        (ConnectionResetError(), LedgerUnavailable),
        (TimeoutError(), LedgerUnavailable),
        (asyncpg.InvalidPasswordError("no"), LedgerRefused),
        (asyncpg.InsufficientPrivilegeError("no"), LedgerRefused),
        (asyncpg.CheckViolationError("no"), LedgerRefused),
        (asyncpg.exceptions.DataError("too big"), LedgerRefused),
    ],
)
def test_every_driver_error_says_whether_trying_again_helps(raised: Exception, becomes: type[SidecarError]) -> None:
    with pytest.raises(becomes) as wrapped, driver_errors():
        raise raised
    assert wrapped.value.__cause__ is raised
    assert str(wrapped.value).strip()


async def test_what_the_caller_raises_in_a_transaction_is_not_the_ledgers(database: str) -> None:
    ledger = await Ledger.open(database, shards=1)
    for error in (TimeoutError("Redis"), ConnectionResetError(), ValueError("x")):
        with pytest.raises(type(error)):
            async with ledger.transaction():
                raise error
    await ledger.close()
