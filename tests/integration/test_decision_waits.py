"""How long a decision waits for a Redis that does not answer: a real one, behind a proxy that holds everything up.

A call may take two seconds here, so that nothing but the bound of the decision itself ends a wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement.core import Core
from sidecar.enforcement.decision import Decision, Identity
from sidecar.enforcement.enforcer import WAIT_MS
from tests.servers.installation import Installation, installation
from tests.servers.tcp_proxy import TcpProxy

NUMBERS = range(5)  # fewer than lookups that may be under way at once
# Who is decided: one whose lease is over, one whose name is not in memory, one whose key is not.
ASKERS = {
    "known": [Identity(f"known-{number}") for number in NUMBERS],
    "named": [Identity(f"never-seen-{number}") for number in NUMBERS],
    "keyed": [Identity(key=f"{number:064}") for number in NUMBERS],
}
# Both timers are of one loop, so a stall holds up both: what may come between is a turn of other processes.
TURN_S = 0.04


@pytest.fixture
async def proxy(redis_server: EmbeddedRedis) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(redis_server.port) as running:
        yield running


@pytest.fixture
async def core(
    redis_server: EmbeddedRedis, proxy: TcpProxy, redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[Core]:
    """A worker that knows the known, as Redis goes away and their leases are over."""
    url = redis_server.url.replace(f":{redis_server.port}/", f":{proxy.port}/")
    async with installation(url, redis_prefix, database, tmp_path) as inside:
        core = await known(inside)
        proxy.hold_up()
        async with asyncio.timeout(20):
            for who in ASKERS["known"]:
                while decided_from_memory(core, who) is not None:
                    await asyncio.sleep(0.01)
        yield core
        proxy.resume()


async def known(inside: Installation) -> Core:
    await inside.catalogue()
    for who in ASKERS["known"]:
        await inside.tenant(str(who.tenant), "free")
    await inside.flusher().flush()
    core = await inside.core(lease_ttl_ms=200)
    async with asyncio.timeout(20):
        for who in ASKERS["known"]:
            while not (await inside.ask(core, str(who.tenant))).allow:
                await asyncio.sleep(0.01)
    return core


def decided_from_memory(core: Core, who: Identity) -> Decision | None:
    return core.enforcer.decide(who, core.enforcer.policy.routes.default, "")


@pytest.mark.parametrize("kind", ASKERS)
async def test_no_decision_waits_longer_than_50_ms_for_a_redis_that_does_not_answer(core: Core, kind: str) -> None:
    assert WAIT_MS == 50
    loop = asyncio.get_running_loop()
    for who in ASKERS[kind]:
        assert decided_from_memory(core, who) is None
        bound = loop.create_task(time_after(WAIT_MS))
        decision = await core.enforcer.decide_waiting(who, core.enforcer.policy.routes.default, "")
        decided_s = loop.time()
        assert (decision.status, decision.reason) == (503, "store_unavailable")
        late_s = decided_s - await bound
        assert late_s < TURN_S


async def test_what_redis_says_of_a_key_is_remembered_though_who_asked_waits_no_longer(
    core: Core, proxy: TcpProxy
) -> None:
    who = ASKERS["keyed"][0]
    assert not (await core.enforcer.decide_waiting(who, core.enforcer.policy.routes.default, "")).allow
    proxy.resume()
    async with asyncio.timeout(20):
        while not core.directory.keys.tenant_of(str(who.key))[0]:
            await asyncio.sleep(0.01)


async def time_after(wait_ms: int) -> float:
    """When a wait that begins now has ended, by the loop's clock."""
    await asyncio.sleep(wait_ms / 1000)
    return asyncio.get_running_loop().time()
