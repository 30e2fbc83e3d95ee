"""Floods of made-up keys and tenants, idle and slow peers, huge heads: all is bounded, and good clients are served.

What good clients saw is printed (pytest -s); their latency is not asserted, since it says more about the machine.
"""

from __future__ import annotations

import asyncio
import re
import resource
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio

from sidecar.enforcement.turns import AT_ONCE
from tests.integration.listener_peer import connect
from tests.servers.accounts import create_key, put_tenant
from tests.servers.child import Child
from tests.servers.flood import GOOD_CLIENTS, flood, good_clients, made_up
from tests.servers.load_client import until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

CATALOGUE = Path(__file__).parent / "floods.yaml"
CACHED_MAX = 500
ENVIRONMENT = {"SIDECAR_KEYS_CACHED_MAX": str(CACHED_MAX), "SIDECAR_TENANTS_CACHED_MAX": str(CACHED_MAX)}
FLOOD = 4_000  # requests
GROWTH_MAX_MB = 24
IDLE, KEPT, SLOW = 9_000, 1_000, 200  # ten thousand wait, and the slow ones come on top
PEER_KB_MAX = 16  # of the worker's memory for a peer that waits
HUGE = 1 << 20
HUGE_HEADS = 50


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    """Started as on many systems: with 1,024 descriptors, and leave to take more."""
    running = SidecarDev(servers_directory / "floods", CATALOGUE, workers=1, env=ENVIRONMENT)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, hard))
    try:
        running.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    yield running
    running.stop()


def memory_mb(dev: SidecarDev) -> float:
    """What the worker holds."""
    [worker] = dev.now().pids["authz"]
    for line in Path(f"/proc/{worker}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no such process")


def metric(dev: SidecarDev, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", dev.metrics(), re.MULTILINE))


async def calls(dev: SidecarDev) -> Counter[str]:
    """How often Redis ran each command since it started."""
    async with redis.asyncio.Redis.from_url(dev.at.redis) as client:
        told = await client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): int(stats["calls"]) for name, stats in told.items()})


async def keys_of(dev: SidecarDev) -> int:
    """How many keys Redis has."""
    async with redis.asyncio.Redis.from_url(dev.at.redis) as client:
        return int(await client.dbsize())


def keys_of_clients(dev: SidecarDev) -> dict[str, list[str]]:
    """API keys of new tenants, by plan."""
    return {plan: [create_key(dev, put_tenant(dev, plan)) for _ in range(GOOD_CLIENTS)] for plan in ("good", "capped")}


async def test_a_flood_of_made_up_keys_costs_redis_a_read_each_at_most_and_good_clients_nothing(
    dev: SidecarDev,
) -> None:
    async with good_clients(dev.authz_port, keys_of_clients(dev), "made-up keys") as good:
        await flood(dev.authz_port, "x-api-key", secrets.token_hex, requests=FLOOD)
        filled_mb, before, answered = memory_mb(dev), await calls(dev), good.answered
        keys = await keys_of(dev)
        told = await flood(dev.authz_port, "x-api-key", secrets.token_hex, requests=FLOOD)
        assert await keys_of(dev) < keys + 100
        grown_mb, made = memory_mb(dev) - filled_mb, await calls(dev) - before
        assert good.answered > answered
    print(f"{dict(told)}; Redis ran {dict(made)}; memory {filled_mb:.0f} MB {grown_mb:+.1f} MB")
    assert set(told) <= {"key_unknown", "store_unavailable"}
    # A script that reads one key; syncs, flusher and polls go on beside it. Nothing is kept for a name nobody has.
    assert made["evalsha"] + made["eval"] <= FLOOD + 1_000
    assert made["set"] == 0
    assert metric(dev, "sidecar_keys_cached") <= CACHED_MAX + 8 * GOOD_CLIENTS
    assert grown_mb < GROWTH_MAX_MB


async def test_a_flood_of_new_tenants_is_counted_up_to_a_bound_and_refused_beyond(dev: SidecarDev) -> None:
    async with good_clients(dev.authz_port, keys_of_clients(dev), "new tenants") as good:
        first = await flood(dev.authz_port, "x-tenant-id", secrets.token_hex, requests=FLOOD)
        filled_mb, before, answered = memory_mb(dev), await calls(dev), good.answered
        known = await made_up(dev.at.redis)
        told = await flood(dev.authz_port, "x-tenant-id", secrets.token_hex, requests=FLOOD)
        after = await made_up(dev.at.redis)
        grown_mb, made = memory_mb(dev) - filled_mb, await calls(dev) - before
        assert good.answered > answered
    print(f"{dict(first)}, then {dict(told)}; Redis knew {len(known)} of them, then {len(after)}")
    print(f"Redis ran {dict(made)}; memory {filled_mb:.0f} MB {grown_mb:+.1f} MB")
    # At the end of an hour those of the first flood may be forgotten, and others take their places.
    assert set(told) <= {"store_unavailable", "limit_contended", "allowed"}
    assert told["allowed"] <= CACHED_MAX
    assert len(after) - len(known) < FLOOD / 2, "Redis was told of tenants that were refused"
    assert metric(dev, "sidecar_strangers_refused_total") > FLOOD / 2
    assert metric(dev, "sidecar_snapshots_cached") <= CACHED_MAX + AT_ONCE + 8 * GOOD_CLIENTS
    assert made["evalsha"] + made["eval"] <= FLOOD + 3_000
    assert grown_mb < GROWTH_MAX_MB
    dev.cli("flush")
    assert dev.cli_json("verify") == []


async def test_ten_thousand_idle_and_slow_peers_leave_room_for_good_clients(dev: SidecarDev) -> None:
    before_mb = memory_mb(dev)
    peers = Child(
        [sys.executable, "-m", "tests.servers.idle_peers", str(dev.authz_port), *map(str, (IDLE, KEPT, SLOW))]
    )
    try:
        async with good_clients(
            dev.authz_port, keys_of_clients(dev), f"{IDLE + KEPT + SLOW:,} idle and slow peers"
        ) as good:
            await asyncio.to_thread(peers.wait_line, "^open$", 90)
            assert metric(dev, "sidecar_connections") >= IDLE + KEPT
            answered, grown_mb = good.answered, memory_mb(dev) - before_mb
            await asyncio.to_thread(peers.wait_line, f"^slow gone {SLOW}$", 60)
            assert good.answered > answered
        assert metric(dev, "sidecar_connections") >= IDLE + KEPT, "those that only wait were closed, too"
        assert metric(dev, "sidecar_connections_refused_total") == 0
    finally:
        peers.stop()
    print(f"memory {before_mb:.0f} MB {grown_mb:+.0f} MB")
    assert grown_mb < (IDLE + KEPT + SLOW) * PEER_KB_MAX / 1_024 + GROWTH_MAX_MB
    await until(lambda: metric(dev, "sidecar_connections") < 100, 30)


async def test_heads_of_a_mebibyte_are_refused_and_not_kept(dev: SidecarDev) -> None:
    async def one() -> int:
        peer = await connect(f"127.0.0.1:{dev.authz_port}")
        peer.send(
            b"GET /envoy/v1/things HTTP/1.1\r\nHost: a\r\nx-tenant-id: acme\r\nx-huge: " + b"x" * HUGE + b"\r\n\r\n"
        )
        answer = await peer.answer()
        await peer.close()
        return answer.status

    async with good_clients(dev.authz_port, keys_of_clients(dev), "heads of 1 MiB") as good:
        answered, before_mb = good.answered, memory_mb(dev)
        assert await asyncio.gather(*(one() for _ in range(HUGE_HEADS))) == [431] * HUGE_HEADS
        grown_mb = memory_mb(dev) - before_mb
        await until(lambda: good.answered > answered)
    print(f"memory {before_mb:.0f} MB {grown_mb:+.1f} MB")
    assert grown_mb < GROWTH_MAX_MB
