"""Redis sees leases and syncs, not requests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.servers.accounts import put_tenant
from tests.servers.load_client import Traffic, until
from tests.servers.processes import backoffice_of
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent.parent / "faults" / "limits.yaml"
RATE_PER_S = 1_000
ALLOWED = 4_000


@pytest.fixture
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "calls", CATALOGUE) as running:
        yield running


def scripts_run(client: redis.Redis) -> int:
    return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])


@pytest.mark.slow
async def test_a_thousand_requests_a_second_need_at_most_five_script_calls(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "large")
    with redis.Redis.from_url(dev.at.redis) as client:
        async with Traffic(dev.authz_port, [tenant], clients=20, rate_per_s=RATE_PER_S) as traffic:
            await traffic.reached(ALLOWED // 2)  # the lease has found its size
            # The flusher's calls depend on time and not on requests: without it the worker's are alone.
            flusher = backoffice_of(dev)
            os.kill(flusher, signal.SIGSTOP)
            try:
                before, began, allowed_before = scripts_run(client), time.monotonic(), traffic.tally.allowed
                await traffic.reached(ALLOWED)
                busy, busy_s = scripts_run(client) - before, time.monotonic() - began
                allowed = traffic.tally.allowed - allowed_before
            finally:
                os.kill(flusher, signal.SIGCONT)
        assert set(traffic.tally.reasons) == {"allowed"}
        # What a worker polls while nobody asks is not due to requests either: tenant changes, twice a second.
        polled = await _polled_per_s(client, flusher) * busy_s
    per_thousand = (busy - polled) * 1_000 / allowed
    assert 0 < per_thousand <= 5, f"{busy} calls, {polled:.1f} of them polls, for {allowed} requests in {busy_s:.1f} s"
    assert dev.ledger(tenant, "api_calls") == traffic.tally.allowed


async def _polled_per_s(client: redis.Redis, flusher: int) -> float:
    """How many scripts run in a second when nothing happens: the least seen, once leases are back."""
    os.kill(flusher, signal.SIGSTOP)
    least = float("inf")
    try:
        for _ in range(3):
            before, began = scripts_run(client), time.monotonic()
            await until(lambda began=began: time.monotonic() - began >= 1.5)  # type: ignore[misc]
            least = min(least, (scripts_run(client) - before) / (time.monotonic() - began))
    finally:
        os.kill(flusher, signal.SIGCONT)
    return least
