"""FLUSHALL in mid-traffic: nothing is lost, nothing over-admitted, and everything comes back from the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio

from tests.servers.accounts import create_key, put_tenant
from tests.servers.load_client import LoadClient, Tally, Traffic, crowd, until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent / "limits.yaml"
CAP = 10_000
RECLAIM_AFTER_MS = 4_000


@pytest.fixture(scope="module", params=["reported", "full"])
def dev(servers_directory: Path, request: pytest.FixtureRequest) -> Iterator[SidecarDev]:
    """Both ways to end the hold after a loss; the full one with a shorter wait than a minute."""
    environment = {
        "SIDECAR_RESTORE_HOLD": request.param,
        "SIDECAR_RECLAIM_AFTER_MS": str(RECLAIM_AFTER_MS),
        "SIDECAR_LEASE_TTL_MS": "2000",
    }
    with SidecarDev(servers_directory / f"wiped-{request.param}", CATALOGUE, workers=2, env=environment) as running:
        yield running


async def wipe(dev: SidecarDev) -> None:
    async with redis.asyncio.Redis.from_url(dev.at.redis) as client:
        await client.flushall()


async def test_nothing_is_lost_and_everything_comes_back(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "large")
    key = create_key(dev, tenant)
    idle = put_tenant(dev, "small")
    idle_key = create_key(dev, idle)
    async with Traffic(dev.authz_port, [tenant], clients=20, rate_per_s=500) as traffic:
        for _ in range(3):
            await traffic.reached(300)
            await wipe(dev)
        await traffic.reached(300)
    ledger = dev.ledger(tenant, "api_calls")
    assert ledger == traffic.tally.allowed
    assert traffic.tally.lost == 0
    # A plan and keys that nobody asked for since are back, too.
    for secret, plan in ((key, "large"), (idle_key, "small")):
        async with LoadClient(dev.authz_port, headers={"x-api-key": secret}) as client:
            answer = await client.decided()
            assert (answer.status, answer.header("x-quota-plan")) == (200, plan)
    assert dev.ledger(tenant, "api_calls") == ledger + 1
    assert dev.cli_json("verify") == []


@pytest.mark.slow
async def test_a_hard_cap_stays_exact_over_a_wipe(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "capped")
    tally = Tally()

    async def turn(client: LoadClient, tally: Tally) -> bool:
        answer = await client.ask()
        tally.add(answer)
        if answer is not None and answer.reason == "limit_reached":
            return False
        if answer is not None and not answer.allowed:
            await asyncio.sleep(0.1)
        return True

    async def wipes() -> None:
        for allowed in (2_000, 6_000, 9_500):
            await until(lambda least=allowed: tally.allowed >= least, 40)  # type: ignore[misc]
            await wipe(dev)

    await asyncio.gather(wipes(), crowd(dev.authz_port, 40, [tenant], turn, tally))
    assert tally.allowed == CAP
    assert dev.ledger(tenant, "api_calls") == CAP
    assert dev.cli_json("verify") == []


async def test_a_worker_killed_at_the_moment_of_a_wipe_loses_nothing(dev: SidecarDev) -> None:
    """Redis forgot what was reported and the worker that knew is gone: its journal and the ledger know."""
    tenant = put_tenant(dev, "large")
    async with Traffic(dev.authz_port, [tenant], clients=20, rate_per_s=500) as traffic:
        await traffic.reached(300)
        pid = dev.now().pids["authz"][0]
        await wipe(dev)
        os.kill(pid, signal.SIGKILL)
        await traffic.reached(300)
    tally = traffic.tally
    assert tally.allowed <= dev.ledger(tenant, "api_calls") <= tally.allowed + tally.lost
    assert dev.cli_json("verify") == []


async def test_a_spent_cap_stays_spent_after_a_wipe(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")

    async def turn(client: LoadClient, tally: Tally) -> bool:
        answer = await client.ask()
        tally.add(answer)
        return answer is None or answer.reason != "limit_reached"

    before = await crowd(dev.authz_port, 2, [tenant], turn)
    assert before.allowed == 20
    dev.cli("flush")
    await wipe(dev)
    after = await crowd(dev.authz_port, 2, [tenant], turn)
    assert after.allowed == 0
