from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar import app
from sidecar.cli.catalogue import default_file
from sidecar.clock import Clock
from sidecar.embedded import EmbeddedRedis, free_port
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.telemetry import FlusherCounters
from tests.servers.child import Child

pytestmark = pytest.mark.timeout(120)
TOKEN = "admin-token-of-this-test"


@pytest.fixture
def settings(redis_url: str, database: str, tmp_path: Path) -> dict[str, str]:
    secret = tmp_path / "dsn"
    secret.write_text(f"{database}\n")
    return {
        "SIDECAR_STATE_DIR": str(tmp_path / "state"),
        "SIDECAR_REDIS_URL": redis_url,
        "SIDECAR_POSTGRES_DSN_FILE": str(secret),
        "SIDECAR_CATALOGUE_FILE": str(default_file()),
        "SIDECAR_ADMIN_TOKENS": TOKEN,
        "SIDECAR_AUTHZ_LISTEN": f"127.0.0.1:{free_port()},unix:{tmp_path}/authz.sock",
        "SIDECAR_LOCAL_LISTEN": f"127.0.0.1:{free_port()}",
        "SIDECAR_OPS_LISTEN": f"127.0.0.1:{free_port()}",
        "SIDECAR_CONTROL_LISTEN": f"127.0.0.1:{free_port()}",
    }


@contextmanager
def serving(settings: dict[str, str], *arguments: str) -> Iterator[Child]:
    child = Child([sys.executable, "-m", "sidecar", "serve", *arguments], env=settings)
    try:
        yield child
    finally:
        child.stop(signal.SIGTERM, 30)


def ready(settings: dict[str, str]) -> bool:
    try:
        with urllib.request.urlopen(f"http://{settings['SIDECAR_OPS_LISTEN']}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def eventually(condition: Callable[[], bool], child: Child, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, child.tail()
        time.sleep(0.02)


def ask_unix(path: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(path)
        client.sendall(b"GET /envoy/v1/things HTTP/1.1\r\nhost: x\r\nx-tenant-id: acme\r\n\r\n")
        return client.recv(4096)


def test_all_roles_serve_from_settings_and_stop_on_sigterm(settings: dict[str, str], tmp_path: Path) -> None:
    with serving(settings, "--role", "all", "--workers", "2") as child:
        eventually(lambda: ready(settings), child)
        path = settings["SIDECAR_AUTHZ_LISTEN"].partition("unix:")[2]
        eventually(lambda: b" 200 " in ask_unix(path), child)
        assert child.stop(signal.SIGTERM, 30) == 0
    assert not Path(path).exists()
    assert list((tmp_path / "state").rglob("*.journal")) == [], child.tail()
    assert TOKEN not in child.tail()
    events = [json.loads(line) for line in child.err]
    assert {event["role"] for event in events} >= {"authz-0", "authz-1", "backoffice"}


def test_every_bad_setting_is_printed_and_nothing_starts(settings: dict[str, str], tmp_path: Path) -> None:
    bad = {**settings, "SIDECAR_SHARDS": "none", "SIDECAR_REDIS_URI": "x", "SIDECAR_OPS_LISTEN": "nowhere"}
    command = [sys.executable, "-m", "sidecar", "serve", "--role", "everything"]
    done = subprocess.run(command, env={**os.environ, **bad}, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    for name in ("SIDECAR_SHARDS", "SIDECAR_REDIS_URI", "SIDECAR_OPS_LISTEN", "SIDECAR_ROLES"):
        assert name in done.stderr
    assert not (tmp_path / "state").exists()


def test_who_names_the_state_of_dev_is_told_where_the_state_of_serve_is(
    settings: dict[str, str], tmp_path: Path
) -> None:
    with serving(settings | {"SIDECAR_STATE": str(tmp_path / "other")}) as child:
        eventually(lambda: "catalogue is away" in child.tail(), child)  # late enough for a stop to be a clean one
        assert child.stop(signal.SIGTERM, 30) == 0
    told = json.loads(next(line for line in child.err if "SIDECAR_STATE is not for serve" in line))
    assert told["state_dir"] == settings["SIDECAR_STATE_DIR"]
    assert "SIDECAR_STATE_DIR is the one of serve" in told["remedy"]
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("role", ["authz", "flusher"])
async def test_a_redis_that_evicts_is_refused_at_the_start(
    settings: dict[str, str], fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], role: str
) -> None:
    server = await fresh_redis()
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
    assert "Redis has maxmemory-policy allkeys-lru; set it to noeviction" in await refused(settings, server.url, role)


@pytest.mark.parametrize("role", ["authz", "flusher"])
async def test_a_redis_that_does_not_accept_the_login_is_told_at_the_start_without_the_password(
    settings: dict[str, str], redis_server: EmbeddedRedis, role: str
) -> None:
    said = await refused(settings, f"redis://:not-the-password@127.0.0.1:{redis_server.port}/0", role)
    assert "Redis does not accept the login" in said
    assert "mend user and password in SIDECAR_REDIS_URL" in said
    assert "not-the-password" not in said


async def refused(settings: dict[str, str], redis_url: str, role: str) -> str:
    """What a program says that does not start on this Redis."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "sidecar", "serve", "--role", role],
        env={**os.environ, **settings, "SIDECAR_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_a_redis_that_is_away_at_the_start_is_told_and_waited_for(settings: dict[str, str]) -> None:
    port = free_port()
    with serving(settings | {"SIDECAR_REDIS_URL": f"redis://:secret-of-redis@127.0.0.1:{port}/0"}) as child:
        eventually(lambda: "Redis does not answer at the start" in child.tail(), child)
        assert child.running()
        assert f"127.0.0.1:{port}" in child.tail()
        assert child.stop(signal.SIGTERM, 30) == 0, "a stop does not wait for a start"
    assert "secret-of-redis" not in child.tail()


async def test_what_redis_evicts_is_told(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], caplog: pytest.LogCaptureFixture
) -> None:
    server = await fresh_redis()
    counters = FlusherCounters()
    store = Store(server.url, Keyspace("sc"), Clock(), identity="t", timeout_ms=5_000)
    watching = asyncio.create_task(app._watch_evictions(store, counters))
    try:
        while not store.calls.get("info"):
            await asyncio.sleep(0.01)
        assert counters.evicted_keys == 0
        watching.cancel()
        async with Redis.from_url(server.url) as client:
            await client.config_set("maxmemory-policy", "allkeys-random")
            await client.mset({f"k{number}": "x" * 1_000 for number in range(1_000)})
            await client.config_set("maxmemory", "1mb")
        watching = asyncio.create_task(app._watch_evictions(store, counters))
        while not counters.evicted_keys:
            await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await store.close()
    assert "Redis evicts keys" in caplog.text
    assert counters.reading(0)["sidecar_store_evicted_keys"][()] == [counters.evicted_keys]
