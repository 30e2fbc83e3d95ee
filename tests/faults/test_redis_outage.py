"""Redis away and back: each limit follows its outage policy, nobody waits, and nothing is lost.

A stopped Redis is the worst kind of outage: it accepts connections and never answers.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.accounts import create_key, put_tenant
from tests.servers.load_client import LoadClient, Traffic, until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent / "limits.yaml"
LEASE_TTL_S = 2
ENVIRONMENT = {"SIDECAR_LEASE_TTL_MS": str(LEASE_TTL_S * 1000), "SIDECAR_RECLAIM_AFTER_MS": "8000"}
# A request waits at most 50 ms for Redis; the rest is what a busy machine adds.
WAIT_MS = 50
BUSY_MS = 100


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "outage", CATALOGUE, workers=1, env=ENVIRONMENT) as running:
        yield running


@contextmanager
def redis_stopped(dev: SidecarDev) -> Iterator[None]:
    dev.signal_redis(signal.SIGSTOP)
    try:
        yield
    finally:
        dev.signal_redis(signal.SIGCONT)


def all_back(dev: SidecarDev) -> bool:
    """Whether whatever has logged that something is away has logged its return."""
    told = [json.loads(line) for line in dev.log_lines()]
    last = {(line["role"], line["logger"], line["event"].rpartition(" is ")[0]): line["event"] for line in told}
    return not any(event.endswith(" is away") for event in last.values())


def degraded_limits(dev: SidecarDev) -> str:
    return dev.metrics().split("\nsidecar_degraded_limits ")[1].split()[0]


@pytest.mark.slow
async def test_each_limit_follows_its_policy_in_an_outage_and_all_of_it_is_counted(dev: SidecarDev) -> None:
    tenants = {plan: put_tenant(dev, plan) for plan in ("closed", "open", "bounded")}

    def traffic_of(plan: str) -> Traffic:
        return Traffic(dev.authz_port, [tenants[plan]], clients=5, rate_per_s=100)

    async with traffic_of("closed") as closed, traffic_of("open") as opened, traffic_of("bounded") as bounded:
        tallies = {"closed": closed.tally, "open": opened.tally, "bounded": bounded.tally}
        refused = [tallies[plan].reasons for plan in ("closed", "bounded")]
        for traffic in (closed, opened, bounded):
            await traffic.reached(200)
        with redis_stopped(dev):
            before = closed.tally.allowed
            await until(lambda: all(reasons["store_unavailable"] > 0 for reasons in refused))
            assert closed.tally.allowed - before > 20, "leases in hand were not spent"
            await until(lambda: all(reasons["store_unavailable"] > 100 for reasons in refused))
            ended = closed.tally.allowed
            await until(lambda: opened.tally.marks["degraded"] > 300)
            assert closed.tally.allowed == ended
            await until(lambda: degraded_limits(dev) == "3.0")
        back = await until(lambda: closed.tally.allowed > ended, 5)
        for tally in (opened.tally, bounded.tally):
            await until(lambda t=tally, ok=tally.marks["ok"]: t.marks["ok"] > ok + 20, 5)  # type: ignore[misc]
        await until(lambda: degraded_limits(dev) == "0.0", 5)
    assert back < 1
    assert {plan: set(tally.reasons) for plan, tally in tallies.items()} == {
        "closed": {"allowed", "store_unavailable"},
        "open": {"allowed"},
        "bounded": {"allowed", "store_unavailable"},
    }
    assert closed.tally.marks["degraded"] == 0
    assert bounded.tally.marks["degraded"] == 30
    dev.cli("flush")
    for plan, tally in tallies.items():
        assert tally.percentile_ms(99) < WAIT_MS + BUSY_MS
        assert dev.usage(tenants[plan])["ledger"] == {"api_calls": tally.allowed}
    assert dev.cli_json("verify") == []


async def test_a_soft_cap_does_not_notice_an_outage(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "graceful")
    async with LoadClient(dev.authz_port, tenant) as client:
        assert [(await client.insist()).mark for _ in range(6)][-1] == "grace"
        with redis_stopped(dev):
            answers = [await client.insist() for _ in range(100)]
    assert {(answer.status, answer.mark) for answer in answers} == {(200, "grace")}
    assert dev.ledger(tenant, "api_calls") == 106


async def test_a_tenant_that_nobody_can_look_up_is_decided_without_waiting_for_long(dev: SidecarDev) -> None:
    """A named one gets the default plan under its outage policy, a key cannot be trusted."""
    key = create_key(dev, put_tenant(dev, "large"))
    with redis_stopped(dev):
        async with LoadClient(dev.authz_port, "never-seen") as client:
            named = [await client.insist() for _ in range(10)]
        async with LoadClient(dev.authz_port, headers={"x-api-key": key}) as client:
            keyed = [await client.insist() for _ in range(10)]
    assert {(answer.status, answer.reason) for answer in (*named, *keyed)} == {(503, "store_unavailable")}
    assert {answer.header("retry-after") for answer in (*named, *keyed)} == {"2"}
    # Beyond its first lookup a request waits once, and not at all when the breaker is open.
    assert max(answer.elapsed_ms for answer in (*named, *keyed)) < 2 * WAIT_MS + BUSY_MS
    async with LoadClient(dev.authz_port, headers={"x-api-key": key}) as client:
        assert (await client.decided()).header("x-quota-plan") == "large"


async def test_a_killed_redis_is_started_again_and_nothing_is_lost(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "open")
    capped = put_tenant(dev, "small")
    async with LoadClient(dev.authz_port, capped) as client:
        assert [(await client.decided()).status for _ in range(15)] == [200] * 15
        async with Traffic(dev.authz_port, [tenant], clients=10, rate_per_s=200) as traffic:
            await traffic.reached(100)
            pid = dev.now().pids["redis"]
            dev.signal_redis(signal.SIGKILL)
            await until(lambda: dev.now().pids["redis"] != pid)
            await traffic.reached(200)
        last = [(await client.decided()).status for _ in range(7)]
    assert last == [200] * 5 + [429] * 2
    assert set(traffic.tally.reasons) == {"allowed"}
    assert dev.ledger(tenant, "api_calls") == traffic.tally.allowed
    assert dev.ledger(capped, "api_calls") == 20
    assert dev.cli_json("verify") == []


@pytest.mark.slow
async def test_commands_that_need_redis_say_soon_that_it_does_not_answer(dev: SidecarDev) -> None:
    """Not having compared is told apart from having found a difference."""
    dev.put_tenant("asked-about", "open")
    with redis_stopped(dev):
        verified, flushed = (
            subprocess.run(
                [sys.executable, "-m", "sidecar", command, "--state", str(dev.state)],
                capture_output=True,
                text=True,
                timeout=40,
                check=False,
            )
            for command in ("verify", "flush")
        )
    assert (verified.returncode, flushed.returncode) == (2, 1)
    assert "could not compare: Redis has not answered for 8 s" in verified.stderr
    assert "Redis has not answered for 8 s" in flushed.stderr
    dev.cli("flush")


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends_and_not_while_it_lasts(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "open")
    async with Traffic(dev.authz_port, [tenant], clients=5, rate_per_s=100) as traffic:
        # The outage of the test before is over for the worker as well, and it has said so, which it does once a second.
        await until(lambda: traffic.tally.marks["ok"] > 50)
        await until(lambda: all_back(dev))
        lines = len(dev.log_lines())
        with redis_stopped(dev):
            degraded = traffic.tally.marks["degraded"]
            await until(lambda: traffic.tally.marks["degraded"] > degraded + 300)
        ok = traffic.tally.marks["ok"]
        await until(lambda: traffic.tally.marks["ok"] > ok + 100)
        await until(lambda: "the store is back" in "".join(dev.log_lines()[lines:]))
    told = [json.loads(line) for line in dev.log_lines()[lines:]]
    counted = Counter((line["role"], line["logger"], line["event"]) for line in told)
    assert max(counted.values()) == 1, counted
    assert {"the store is away", "the store is back"} <= {event for _, _, event in counted}
