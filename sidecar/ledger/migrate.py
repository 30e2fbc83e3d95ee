"""Brings Postgres to the current schema.

Guarantees: forward only, and all or nothing: every missing revision in one transaction, behind a lock, so two at once
            are harmless and one that dies leaves no half. Works through a PgBouncer that pools by transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from sidecar.errors import LedgerRefused
from sidecar.ledger.transaction import driver_errors

OLDEST = 15
PARTITIONS_AHEAD = 3
WRITE_AUDIT = """
insert into audit_log (actor, action, detail)
values (
    cast(:actor as text), 'ledger.migrate',
    jsonb_build_object('from', cast(:before as text), 'to', cast(:after as text))
)
"""


async def migrate(dsn: str, *, actor: str = "migrate") -> str:
    """Bring the database to the newest revision and return it.

    Raises LedgerRefused when the server is too old, or would give numbers of the audit log twice after a crash.
    """
    engine = _engine(dsn)
    with driver_errors(), _unwrapped():
        async with engine.begin() as connection:
            return await connection.run_sync(_upgrade, actor)


async def current(dsn: str) -> str:
    """The revision the database is at; empty when it was never migrated."""
    engine = _engine(dsn)
    with driver_errors(), _unwrapped():
        async with engine.connect() as connection:
            return await connection.run_sync(_revision)


def newest() -> str:
    """The revision this program was written for."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Bring back the driver's own error out of what SQLAlchemy makes of it."""
    try:
        yield
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig is not None else None
        raise cause or error from error


def _engine(dsn: str) -> AsyncEngine:
    # asyncpg reads the dsn itself, so it means here what it means to the pool (sockets and services too).
    connect = partial(asyncpg.connect, dsn, statement_cache_size=0)
    # A PgBouncer that pools by transaction hands on connections with statements of others: ours must not meet them.
    arguments = {
        "async_creator_fn": connect,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"migrate_{uuid4().hex}",
    }
    return create_async_engine("postgresql+asyncpg://", connect_args=arguments, poolclass=NullPool)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "sidecar.ledger:migrations")
    return config


def _upgrade(connection: Connection, actor: str) -> str:
    _fit(connection)
    connection.execute(text("select pg_advisory_xact_lock(hashtext('sidecar migrate'))"))
    before = _revision(connection)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    after = _revision(connection)
    if after != before:
        detail = {"actor": actor, "before": before, "after": after}
        connection.execute(text(WRITE_AUDIT), detail)
    connection.execute(text("select ensure_partitions(:ahead, ledger_now())"), {"ahead": PARTITIONS_AHEAD})
    return after


def _fit(connection: Connection) -> None:
    setting = "select current_setting(:name)"
    major = int(connection.execute(text(setting), {"name": "server_version_num"}).scalar_one()) // 10_000
    if major < OLDEST:
        raise LedgerRefused(f"this is Postgres {major}; use {OLDEST} or newer")
    # A sequence that was made and used in one transaction would go back when such a server is killed.
    if connection.execute(text(setting), {"name": "wal_level"}).scalar_one() == "minimal":
        raise LedgerRefused("Postgres runs with wal_level = minimal; set wal_level = replica and restart it")


def _revision(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""
