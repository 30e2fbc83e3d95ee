"""Postgres or the flusher away in mid-traffic: enforcement does not notice, and the ledger is complete afterwards."""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.accounts import put_tenant
from tests.servers.load_client import LoadClient, Traffic, until
from tests.servers.processes import backoffice_of, family
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent / "limits.yaml"
UNNOTICED_MS = 100  # no request waits for Postgres; this is what a busy machine adds


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "ledger-outage", CATALOGUE, workers=2) as running:
        yield running


@contextmanager
def postgres_stopped(dev: SidecarDev) -> Iterator[None]:
    pids = family(dev.now().pids["postgres"])
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_enforcement_does_not_notice_a_stopped_postgres(dev: SidecarDev) -> None:
    tenant, capped = put_tenant(dev, "large"), put_tenant(dev, "small")
    async with Traffic(dev.authz_port, [tenant], clients=10, rate_per_s=300) as traffic:
        await traffic.reached(300)
        with postgres_stopped(dev):
            await traffic.reached(900)
            async with LoadClient(dev.authz_port, capped) as client:
                answers = [await client.decided() for _ in range(22)]
            assert dev.ready()
        await traffic.reached(100)
    assert set(traffic.tally.reasons) == {"allowed"}
    assert traffic.tally.percentile_ms(99) < UNNOTICED_MS
    assert [answer.status for answer in answers] == [200] * 20 + [429] * 2
    dev.cli("flush")
    assert dev.usage(tenant)["ledger"] == {"api_calls": traffic.tally.allowed}
    assert dev.usage(capped)["ledger"] == {"api_calls": 20}
    assert dev.cli_json("verify") == []


async def test_a_killed_postgres_is_started_again_and_the_ledger_is_complete(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "large")
    async with Traffic(dev.authz_port, [tenant], clients=10, rate_per_s=300) as traffic:
        for _ in range(2):
            await traffic.reached(200)
            pid = dev.now().pids["postgres"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: dev.now().pids["postgres"] != pid, 30)  # type: ignore[misc]
    assert set(traffic.tally.reasons) == {"allowed"}
    assert dev.ledger(tenant, "api_calls") == traffic.tally.allowed
    assert dev.cli_json("verify") == []


async def test_a_flusher_killed_in_mid_flush_counts_nothing_twice_and_loses_nothing(dev: SidecarDev) -> None:
    tenants = [put_tenant(dev, "large") for _ in range(4)]
    async with Traffic(dev.authz_port, tenants, clients=20, rate_per_s=600) as traffic:
        for _ in range(5):
            await until(lambda: backoffice_of(dev) > 0, 20)
            pid = backoffice_of(dev)
            await traffic.reached(100)
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: backoffice_of(dev) not in (0, pid), 20)  # type: ignore[misc]
    assert set(traffic.tally.reasons) == {"allowed"}
    dev.cli("flush")
    counted = sum(dev.usage(tenant)["ledger"]["api_calls"] for tenant in tenants)
    assert counted == traffic.tally.allowed
    assert dev.cli_json("verify") == []


async def test_the_billing_api_says_that_postgres_is_away(dev: SidecarDev) -> None:
    request = urllib.request.Request(
        f"{dev.at.control}/api/v1/tenants/demo-free", headers={"authorization": f"Bearer {dev.at.admin_token}"}
    )
    pid = dev.now().pids["postgres"]
    os.kill(dev.pid, signal.SIGSTOP)  # or it would start Postgres again at once
    try:
        for process in family(pid):
            os.kill(process, signal.SIGKILL)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
    finally:
        os.kill(dev.pid, signal.SIGCONT)
    with refused.value as answer:
        assert answer.status == 503
        assert answer.headers["retry-after"] == "2"
    await until(lambda: dev.now().pids["postgres"] != pid, 30)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200
