"""The pool of connections to Postgres, and the transactions that everything else works in.

Guarantees: a Ledger starts while Postgres is away and comes back by itself with it; a transaction is committed as a
            whole or leaves nothing; work with another number of shards than the installation's is refused.
Gives up:   waiting: a connection or a statement that takes longer than ``timeout_s`` is LedgerUnavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import asyncpg
from msgspec import Struct

from sidecar.errors import LedgerRefused
from sidecar.ledger.shard import ShardTransaction
from sidecar.ledger.transaction import Connection, Transaction, driver_errors


class Installation(Struct, frozen=True):
    """What is fixed at installation: which ledger this is, and over how many shards tenants are spread."""

    ledger_id: str
    shards: int


class Ledger:
    """Owns the pool; opened and closed by the wiring."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], shards: int, timeout_s: float) -> None:
        self._pool = pool
        self._shards = shards
        self._timeout_s = timeout_s
        self._installation: Installation | None = None

    @classmethod
    async def open(
        cls, dsn: str, *, shards: int = 16, connections_max: int = 4, prepared: bool = True, timeout_s: float = 30
    ) -> Self:
        """Make a ledger of ``dsn`` without connecting yet.

        ``prepared=False`` is for a PgBouncer that pools by transaction and does not know prepared statements.
        """
        with driver_errors():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=0,
                max_size=connections_max,
                timeout=timeout_s,
                command_timeout=timeout_s,
                statement_cache_size=100 if prepared else 0,
                reset=_nothing_to_reset,
            )
        return cls(pool, shards, timeout_s)

    async def ensure_partitions(self, around_s: int, months_ahead: int = 3) -> int:
        """Make the monthly partitions around an instant that are missing, and drop those that folding has emptied."""
        async with self.transaction() as tx:
            made = int(await tx.value("ensure_partitions", months_ahead, around_s))
        async with self.transaction() as tx:
            await tx.rows("drop_folded_partitions")
        return made

    async def set_clock_ahead(self, ahead_s: int) -> None:
        """Move the ledger's own clock (ledger_now()) ahead of the server's; `sidecar dev` only."""
        async with self.transaction() as tx:
            await tx.rows("set_clock_ahead", ahead_s)

    async def close(self, timeout_s: float = 5) -> None:
        """Wait for transactions under way, at most ``timeout_s``, then cut what is left."""
        try:
            await asyncio.wait_for(self._pool.close(), timeout_s)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    async def installation(self) -> Installation:
        """Record the number of shards at first use; refuse a different one ever after."""
        if self._installation is None:
            async with self._begun() as connection:
                transaction = Transaction(connection, self._shards)
                await transaction.rows("record_shards", self._shards)
                row = await transaction.row("installation")
            if row is None:
                raise LedgerRefused("Postgres has no installation row; run `sidecar migrate`")
            if row["shards"] != self._shards:
                raise LedgerRefused(
                    f"this installation has {row['shards']} shards, the setting says {self._shards}; "
                    "the number is fixed at installation"
                )
            self._installation = Installation(str(row["ledger_id"]), row["shards"])
        return self._installation

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Give one transaction (read committed): committed at the end of the block, rolled back by an exception."""
        await self.installation()
        async with self._begun() as connection:
            yield Transaction(connection, self._shards)

    @asynccontextmanager
    async def shard(self, shard: int) -> AsyncIterator[ShardTransaction | None]:
        """Give a transaction that has a shard for itself; None while another flusher has it."""
        await self.installation()
        async with self._begun() as connection:
            transaction = ShardTransaction(connection, self._shards, shard)
            yield transaction if await transaction.take() else None

    @asynccontextmanager
    async def _begun(self) -> AsyncIterator[Connection]:
        """Wrap the driver's own failures only: what the block raises goes through as it is."""
        with driver_errors():
            connection = await self._pool.acquire(timeout=self._timeout_s)
        try:
            transaction = connection.transaction()
            with driver_errors():
                await transaction.start()
            try:
                yield connection
            except BaseException:
                # A connection that is gone has rolled back already.
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                    await transaction.rollback()
                raise
            with driver_errors():
                await transaction.commit()
        finally:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                await self._pool.release(connection)


async def _nothing_to_reset(_connection: Any) -> None:
    """Spare the round trip: nothing here outlives its transaction (locks and settings are the transaction's)."""
