"""A worker that disappears with its disk while it holds a lease: the documented exception, and its metric."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio

from tests.servers.accounts import KEYS, put_tenant
from tests.servers.load_client import LoadClient, Tally, crowd, until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent / "limits.yaml"
CAP = 4_000
TIMES = {"SIDECAR_LEASE_TTL_MS": "2000", "SIDECAR_RECLAIM_AFTER_MS": "4000"}
CLIENTS = 40
WARMING = 200  # requests; the lease grows with what is spent
PACE_S = 0.005  # at full speed the lease would grow to the whole cap, and nobody be short of Redis
RETRY_S = 0.2


@pytest.fixture
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "lost-disk", CATALOGUE, env=TIMES) as running:
        yield running


def units_lost(dev: SidecarDev) -> int:
    """What the metric says of leases that were taken back."""
    told = re.search(r"^sidecar_lease_units_lost_total (\S+)$", dev.metrics(), re.MULTILINE)
    return int(float(told[1])) if told else 0


async def warm(client: LoadClient) -> int:
    """Ask at a steady pace; the requests that were allowed."""
    allowed = 0
    for _ in range(WARMING):
        allowed += (await client.insist()).allowed
        await asyncio.sleep(PACE_S)
    return allowed


async def spend_lease(client: LoadClient) -> int:
    """Ask until only Redis, which does not answer, could allow more; the requests that were allowed."""
    allowed = 0
    while (answer := await client.insist()).allowed:
        allowed += 1
    assert answer.reason == "store_unavailable"
    return allowed


async def until_spent(client: LoadClient, tally: Tally) -> bool:
    answer = await client.ask()
    tally.add(answer)
    if answer is None or answer.allowed:
        return True
    await asyncio.sleep(RETRY_S)
    return answer.reason != "limit_reached"


async def test_what_a_lost_disk_admits_beyond_a_cap_is_within_the_lease_that_the_metric_tells(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "capped_for_life")
    async with LoadClient(dev.authz_port, tenant) as client:
        await client.decided()
        allowed = 1 + await warm(client)
        dev.signal_redis(signal.SIGSTOP)
        allowed += await spend_lease(client)
        os.kill(dev.pid, signal.SIGSTOP)
        dev.signal_authz(signal.SIGKILL)
    for journal in (dev.state / "journals").iterdir():
        journal.unlink()
    dev.signal_redis(signal.SIGCONT)
    os.kill(dev.pid, signal.SIGCONT)
    await until(lambda: units_lost(dev) > 0, 30)

    tally = await crowd(dev.authz_port, CLIENTS, [tenant], until_spent)

    beyond = allowed + tally.allowed - CAP
    assert 0 < beyond <= units_lost(dev)
    assert dev.ledger(tenant, "api_calls") == CAP
    async with redis.asyncio.Redis.from_url(dev.at.redis) as store:
        assert units_lost(dev) == int(await store.hget(KEYS.epoch(KEYS.shard_of(tenant)), "lost") or 0)
    assert dev.cli_json("verify") == []
