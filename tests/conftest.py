"""Real servers on free ports, one set for each process that runs tests.

Isolation is by database and by key prefix: no test sees another's rows or keys, and nobody flushes a server. A test
that kills or wipes a Redis asks for one of its own.
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import redis.asyncio
import uvloop
from hypothesis import settings

from sidecar.embedded import EmbeddedPostgres, EmbeddedRedis
from sidecar.embedded.redis import DATABASES
from tests.servers.forwarding import Forwarding, forwarding
from tests.servers.stripe import Stripe

T = TypeVar("T")
TEARDOWN_S = 180

# The time of one example says nothing on a machine that also runs servers; the time of a whole test is bounded.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")

_redis_databases = itertools.cycle(range(1, DATABASES))


def pytest_configure() -> None:
    """Choose new seeds for the simulation in each run of CI; processes that this one starts take the same."""
    if os.environ.get("CI") == "true":
        os.environ.setdefault("SIMULATION_FIRST", str(secrets.randbelow(10**9)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how the simulation's seeds of this run are taken again."""
    if "SIMULATION_FIRST" in os.environ:
        terminalreporter.write_line(f"simulated seeds: SIMULATION_FIRST={os.environ['SIMULATION_FIRST']}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """End the process when a teardown hangs; pytest's own watch ends with the failure of the test."""
    faulthandler.dump_traceback_later(TEARDOWN_S, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop of production."""
    return {"uvloop": uvloop.new_event_loop}


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine for a fixture that outlives the loop of any one test."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(scope="session")
def servers_directory() -> Iterator[Path]:
    """A directory that the user of an embedded Postgres can reach; pytest's own is closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="quota-sidecar-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def redis_server(servers_directory: Path) -> Iterator[EmbeddedRedis]:
    """The Redis that tests share; it must not be stopped, killed or flushed."""
    server = EmbeddedRedis(servers_directory / "redis", durable=False)
    run(server.start())
    yield server
    run(server.stop())


@pytest.fixture
def redis_prefix() -> str:
    """A prefix of all keys that this test writes."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> Iterator[str]:
    """The URL of an empty database of the shared Redis, for what cannot take a prefix."""
    url = f"{redis_server.url.removesuffix('/0')}/{next(_redis_databases)}"
    yield url

    async def empty() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            await client.flushdb()

    run(empty())


@pytest.fixture
async def fresh_redis(servers_directory: Path) -> AsyncIterator[Callable[[], Awaitable[EmbeddedRedis]]]:
    """Start a Redis of the test's own: kill it, wipe it, stop it and start it again."""
    servers: list[EmbeddedRedis] = []

    async def start() -> EmbeddedRedis:
        server = EmbeddedRedis(servers_directory / f"redis-{secrets.token_hex(6)}", durable=False)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()
        shutil.rmtree(server.directory)


@pytest.fixture(scope="session")
def postgres_server(servers_directory: Path) -> Iterator[EmbeddedPostgres]:
    """The Postgres that tests share; it must not be stopped or killed."""
    server = EmbeddedPostgres(servers_directory / "postgres", durable=False)
    run(server.start())
    yield server
    run(server.stop())


@pytest.fixture
async def fresh_postgres(servers_directory: Path) -> AsyncIterator[Callable[[], Awaitable[EmbeddedPostgres]]]:
    """Start a Postgres of the test's own, empty, to be killed and started again."""
    servers: list[EmbeddedPostgres] = []

    async def start() -> EmbeddedPostgres:
        server = EmbeddedPostgres(servers_directory / f"postgres-{secrets.token_hex(6)}", durable=False)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()
        shutil.rmtree(server.directory)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """The name of a migrated, empty database that is only ever copied."""
    from sidecar.ledger.migrate import migrate  # noqa: PLC0415 - most tests need no ledger

    name = "migrated"

    async def make() -> None:
        await _administer(postgres_server, f"create database {name}")
        await migrate(_dsn(postgres_server, name))

    run(make())
    return name


@pytest.fixture
async def database(postgres_server: EmbeddedPostgres, migrated_template: str) -> AsyncIterator[str]:
    """The DSN of a migrated, empty database of the test's own."""
    name = f"t{secrets.token_hex(6)}"
    await _administer(postgres_server, f"create database {name} template {migrated_template}")
    yield _dsn(postgres_server, name)
    await _administer(postgres_server, f"drop database {name} with (force)")


@pytest.fixture
async def empty_database(postgres_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """The DSN of a database without a schema."""
    name = f"t{secrets.token_hex(6)}"
    await _administer(postgres_server, f"create database {name}")
    yield _dsn(postgres_server, name)
    await _administer(postgres_server, f"drop database {name} with (force)")


@pytest.fixture
def stripe() -> Iterator[Stripe]:
    """A Stripe stand-in of the test's own."""
    with Stripe() as running:
        yield running


@pytest.fixture
async def place(database: str, stripe: Stripe) -> AsyncIterator[Forwarding]:
    """A ledger beside a stand-in, with meters; the test drives the forwarders."""
    async with forwarding(database, stripe) as opened:
        yield opened


def _dsn(server: EmbeddedPostgres, database: str) -> str:
    return f"{server.dsn.rpartition('/')[0]}/{database}"


async def _administer(server: EmbeddedPostgres, statement: str) -> None:
    connection = await asyncpg.connect(server.dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
