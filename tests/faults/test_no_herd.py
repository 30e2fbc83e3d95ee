"""What Redis is asked when it comes back to many clients who all need it at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.servers.load_client import Traffic, until
from tests.servers.served import KEYS, Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CATALOGUE = Path(__file__).parent / "limits.yaml"
WORKERS = 2
TENANTS = 160
CLIENTS = 80
RATE_PER_S = 400
ENVIRONMENT = {"SIDECAR_LEASE_TTL_MS": "2000", "SIDECAR_RECLAIM_AFTER_MS": "20000"}


@pytest.fixture
async def served(servers_directory: Path, database: str) -> AsyncIterator[Served]:
    async with Served(servers_directory / "herd", database, CATALOGUE, ENVIRONMENT, workers=WORKERS) as running:
        yield running


async def asked(served: Served) -> int:
    """How many scripts Redis has run."""
    calls = await served.calls()
    return calls.get("evalsha", 0) + calls.get("eval", 0)


async def test_when_redis_comes_back_its_calls_depend_on_shards_and_workers_and_not_on_who_waits(
    served: Served,
) -> None:
    tenants = [name for name, _ in await served.new_tenants(*["closed"] * TENANTS)]
    async with Traffic(served.authz_port, tenants, clients=CLIENTS, rate_per_s=RATE_PER_S) as traffic:
        await traffic.reached(4 * RATE_PER_S)
        usual = await calls_per_s(served, traffic, 2 * RATE_PER_S)

        served.proxy.hold_up()
        await until(lambda: traffic.tally.reasons["store_unavailable"] > 3 * RATE_PER_S, 30)
        served.proxy.resume(late=False)
        began, before = time.monotonic(), await asked(served)
        await traffic.reached(RATE_PER_S)
        back, elapsed_s = await asked(served) - before, time.monotonic() - began
    # A shard's waiters share a call, and those who came meanwhile share the next one; the flusher has as much to do.
    assert back <= usual * elapsed_s + 2 * KEYS.shards * (WORKERS + 1)
    assert set(traffic.tally.reasons) == {"allowed", "store_unavailable"}


async def calls_per_s(served: Served, traffic: Traffic, allowed: int) -> float:
    """How often Redis is called while so many requests are allowed; most of it goes by time, not by requests."""
    began, before = time.monotonic(), await asked(served)
    await traffic.reached(allowed)
    return (await asked(served) - before) / (time.monotonic() - began)
