"""Floods while Redis is far away: most made-up names are refused without asking it, and good clients are served.

The flooders are more than the turns there are and the places to wait for one (sidecar/enforcement/turns.py).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.enforcement.turns import AT_ONCE, WAITING_MAX
from tests.servers.flood import GOOD_CLIENTS, flood, good_clients, made_up
from tests.servers.served import Served

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

CATALOGUE = Path(__file__).parent / "floods.yaml"
CACHED_MAX = 500
ENVIRONMENT = {
    "SIDECAR_KEYS_CACHED_MAX": str(CACHED_MAX),
    "SIDECAR_TENANTS_CACHED_MAX": str(CACHED_MAX),
    "SIDECAR_REDIS_TIMEOUT_MS": "2000",  # slow, not away; the proxy shares a busy processor with everything else
}
DELAY_MS = 20
PEERS = 400
FLOOD = 4_000
GROWTH_MAX_MB = 24


@pytest.fixture
async def served(servers_directory: Path, database: str) -> AsyncIterator[Served]:
    folder = servers_directory / f"slow-{database[-12:]}"
    async with Served(folder, database, CATALOGUE, ENVIRONMENT) as running:
        yield running


@pytest.mark.parametrize("header", ["x-api-key", "x-tenant-id"])
async def test_a_flood_that_redis_is_too_slow_for_is_refused_before_it_gets_there(served: Served, header: str) -> None:
    assert PEERS > AT_ONCE + WAITING_MAX
    plans = ["good", "capped"] * GOOD_CLIENTS
    keys: dict[str, list[str]] = {"good": [], "capped": []}
    for plan, (_, key) in zip(plans, await served.new_tenants(*plans), strict=True):
        keys[plan].append(key)
    served.proxy.slow(DELAY_MS)
    async with good_clients(served.authz_port, keys, f"made-up {header}") as good:
        await flood(served.authz_port, header, secrets.token_hex, peers=PEERS, requests=FLOOD)
        await served.flush()  # of the few that had a turn
        refused, asked = await served.metric("sidecar_strangers_refused_total"), await scripts(served)
        known, filled_mb, answered = len(await made_up(served.redis.url)), served.memory_mb(), good.answered
        told = await flood(served.authz_port, header, secrets.token_hex, peers=PEERS, requests=FLOOD)
        refused = await served.metric("sidecar_strangers_refused_total") - refused
        asked, known = await scripts(served) - asked, len(await made_up(served.redis.url)) - known
        grown_mb = served.memory_mb() - filled_mb
        assert good.answered > answered
    print(f"{dict(told)}; {refused:.0f} refused, {asked} scripts, {known:+} known, memory {grown_mb:+.1f} MB")
    assert refused > FLOOD / 2
    assert asked < FLOOD / 2
    assert known <= CACHED_MAX, "Redis was told of names that were refused"
    assert grown_mb < GROWTH_MAX_MB
    assert await served.metric("sidecar_breaker_opened_total") == 0
    served.proxy.slow(0)
    await served.flush()
    assert await served.verify() == "[]"


async def scripts(served: Served) -> int:
    """How many scripts Redis ran since it started."""
    calls = await served.calls()
    return calls.get("evalsha", 0) + calls.get("eval", 0)
