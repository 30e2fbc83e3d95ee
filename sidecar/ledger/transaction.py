"""One transaction of the ledger, and the edge at which driver errors become ours.

Guarantees: every query is a named one of sql/; nothing of the driver escapes: a failure that passes by itself is
            LedgerUnavailable, every other one LedgerRefused with its cause.
Gives up:   telling whether a commit whose answer was lost took place. Merges are safe to repeat, which is why.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from sidecar.errors import LedgerRefused, LedgerUnavailable
from sidecar.ledger.queries import query

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

# SQLSTATE classes and codes after which the very same call may succeed: connection, resources, operator intervention,
# system errors; then serialization failure, deadlock, lock timeout, a standby that is not the primary (any more).
_TRANSIENT_CLASSES = ("08", "53", "57", "58")
_TRANSIENT_CODES = ("40001", "40P01", "55P03", "25006")
_UNMIGRATED_CODES = ("42P01", "42703", "42883")


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn what the driver raises into the two errors that callers know."""
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if state[:2] in _TRANSIENT_CLASSES or state in _TRANSIENT_CODES:
            raise LedgerUnavailable(f"Postgres did not finish ({state}): {error}") from error
        if state in _UNMIGRATED_CODES:
            raise LedgerRefused(f"Postgres has another schema; run `sidecar migrate` ({error})") from error
        raise LedgerRefused(f"Postgres refused ({state}): {error}") from error
    except (asyncpg.InternalClientError, OSError, TimeoutError) as error:
        # Before ValueError, which a certificate that is not trusted is as well.
        raise LedgerUnavailable(f"Postgres did not answer: {str(error) or type(error).__name__}") from error
    except asyncpg.ClientConfigurationError as error:
        raise LedgerRefused(f"SIDECAR_POSTGRES_DSN cannot be used: {error}") from error
    except ValueError as error:
        # asyncpg's own DataError is an InterfaceError and a ValueError: the value can never be sent.
        if isinstance(error, asyncpg.InterfaceError):
            raise LedgerRefused(f"a value cannot be sent to Postgres: {error}") from error
        raise
    except asyncpg.InterfaceError as error:
        raise LedgerUnavailable(f"Postgres did not answer: {str(error) or type(error).__name__}") from error


class Transaction:
    """An open transaction; ``shards`` is the installation's, for rows that carry their shard."""

    __slots__ = ("_connection", "shards")

    def __init__(self, connection: Connection, shards: int) -> None:
        self._connection = connection
        self.shards = shards

    async def rows(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        with driver_errors():
            return await self._connection.fetch(query(name), *arguments)

    async def row(self, name: str, *arguments: Any) -> asyncpg.Record | None:
        with driver_errors():
            return await self._connection.fetchrow(query(name), *arguments)

    async def value(self, name: str, *arguments: Any) -> Any:
        """The first column of the first row; None when there is no row."""
        with driver_errors():
            return await self._connection.fetchval(query(name), *arguments)
