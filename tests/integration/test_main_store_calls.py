"""Redis sees leases and syncs, not requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.servers.accounts import put_tenant
from tests.servers.load_client import Traffic
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent.parent / "faults" / "limits.yaml"
RATE_PER_S = 1_000
ALLOWED = 12_000


@pytest.fixture
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "calls", CATALOGUE) as running:
        yield running


def scripts_run(client: redis.Redis) -> int:
    return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])


@pytest.mark.slow
async def test_a_thousand_requests_a_second_need_at_most_five_script_calls(dev: SidecarDev) -> None:
    """All script calls count: those of the worker, the flusher and the polls."""
    tenant = put_tenant(dev, "large")
    with redis.Redis.from_url(dev.at.redis) as client:
        async with Traffic(dev.authz_port, [tenant], clients=20, rate_per_s=RATE_PER_S) as traffic:
            await traffic.reached(ALLOWED // 2)  # the lease has found its size
            before, began, allowed_before = scripts_run(client), time.monotonic(), traffic.tally.allowed
            await traffic.reached(ALLOWED)
            scripts, allowed = scripts_run(client) - before, traffic.tally.allowed - allowed_before
            # Most of them are due to time: a busy machine that serves fewer requests a second makes no more of them.
            thousands = max(allowed / 1_000, time.monotonic() - began)
        assert set(traffic.tally.reasons) == {"allowed"}
    assert 0 < scripts / thousands <= 5, f"{scripts} calls for {allowed} requests"
    print(f"{scripts * 1_000 / allowed:.2f} script calls per 1,000 requests")
    assert dev.ledger(tenant, "api_calls") == traffic.tally.allowed
