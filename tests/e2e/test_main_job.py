"""The main job, whole: a real gateway asks a real sidecar, and the ledger in Postgres has what was allowed."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.gateways import GATEWAYS, Counts, Envoy, Gateway, Nginx
from tests.servers.sidecar_dev import SidecarDev
from tests.servers.upstream import Upstream

CATALOGUE = Path(__file__).parent / "main_job.yaml"
# What comes back after an outage does so within leases, breakers and the supervisor's patience.
BACK_S = 30


@pytest.fixture(scope="session")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "main-job", CATALOGUE) as started:
        yield started


@pytest.fixture(scope="module", params=GATEWAYS)
def gateway(
    request: pytest.FixtureRequest, dev: SidecarDev, application: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    started = GATEWAYS[request.param](
        tmp_path_factory.mktemp(request.param), authz_port=dev.authz_port, upstream_port=application.port
    )
    started.start()
    yield started
    started.stop()


async def statuses(client: aiohttp.ClientSession, url: str, key: str, times: int) -> list[int]:
    """One after another, so that the order of the answers is the order of the decisions."""
    found = []
    for _ in range(times):
        async with client.get(url, headers={"x-api-key": key}) as answer:
            found.append(answer.status)
    return found


async def until(client: aiohttp.ClientSession, url: str, key: str, status: int) -> tuple[float, Counter[int]]:
    """Ask until that status comes; how long it took and what was answered on the way, the last one included."""
    began, seen = time.monotonic(), Counter[int]()
    while not seen[status]:
        seen.update(await statuses(client, url, key, 1))
        assert time.monotonic() - began < BACK_S, f"{status} did not come: {seen}"
    return time.monotonic() - began, seen


def decisions(dev: SidecarDev) -> Counter[str]:
    """Decisions by reason, from the sidecar's own metrics."""
    found = Counter[str]()
    for reason, value in re.findall(r'sidecar_decisions_total\{[^}]*reason="(\w+)"[^}]*\} (\d+)', dev.metrics()):
        found[reason] += int(value)
    return found


async def test_a_hard_cap_lets_exactly_its_amount_pass_and_the_ledger_has_it(
    dev: SidecarDev, gateway: Gateway, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("hard")
    # The tenant's shard may still be held: behind the gateway before this one Redis was killed.
    _, seen = await until(client, f"{gateway.url}/v1/x", key, 200)
    assert set(seen) <= {200, 503}
    assert await statuses(client, f"{gateway.url}/v1/x", key, 24) == [200] * 19 + [429] * 5
    assert len(upstream.received) == 20
    async with client.get(gateway.url, headers={"x-api-key": key}) as answer:
        problem = await answer.json(content_type="application/problem+json")
    assert int(answer.headers["retry-after"]) > 1, "units that are spent come back with the next period only"
    assert re.fullmatch(r'"api_calls";r=0;t=\d+', answer.headers["ratelimit"])
    assert re.fullmatch(r'"api_calls";q=20;w=\d+', answer.headers["ratelimit-policy"])
    assert (problem["status"], problem["reason"], problem["limit"]) == (429, "limit_reached", 20)
    assert problem["upgrade-url"] == "https://example.com/upgrade"
    assert dev.ledger(tenant, "api_calls") == 20


async def test_a_cost_that_does_not_fit_is_denied_and_one_that_does_still_passes(
    dev: SidecarDev, gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("hard")
    assert await statuses(client, f"{gateway.url}/v1/x", key, 5) == [200] * 5
    assert await statuses(client, f"{gateway.url}/v1/dear/x", key, 2) == [200, 429]
    assert await statuses(client, f"{gateway.url}/v1/x", key, 6) == [200] * 5 + [429]
    assert dev.ledger(tenant, "api_calls") == 20


async def test_beyond_a_soft_cap_requests_pass_are_marked_and_counted(
    dev: SidecarDev, gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("soft")
    marks = []
    for _ in range(8):
        async with client.get(gateway.url, headers={"x-api-key": key}) as answer:
            assert answer.status == 200
            marks.append(answer.headers["x-quota-status"])
    assert marks[0] == "ok"
    assert marks[-1] == "grace"
    assert dev.ledger(tenant, "api_calls") == 8


async def test_what_is_denied_for_another_reason_is_not_counted(
    dev: SidecarDev, gateway: Gateway, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("hard")
    assert await statuses(client, f"{gateway.url}/v1/admin/users", key, 3) == [403] * 3
    assert await statuses(client, gateway.url, f"{key}-of-nobody", 3) == [401] * 3
    async with client.get(gateway.url) as answer:
        assert answer.status == 401
    assert upstream.received == []
    assert dev.ledger(tenant, "api_calls") == 0


async def test_a_post_arrives_whole_with_the_plan_it_was_checked_against(
    dev: SidecarDev, gateway: Gateway, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("large")
    body = b"0123456789" * 20_000
    async with client.post(f"{gateway.url}/v1/x", data=body, headers={"x-api-key": key}) as answer:
        assert answer.status == 200
    received = upstream.last()
    assert received.body == body
    assert received.header("x-quota-tenant") == tenant
    assert received.header("x-quota-plan") == "large"
    assert received.header("x-quota-feature-support") == "phone"
    assert dev.ledger(tenant, "api_calls") == 1


async def test_nobody_spends_for_another_by_naming_him(
    dev: SidecarDev, gateway: Gateway, upstream: Upstream, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("large")
    victim, _ = dev.new_tenant("large")
    for name in ("x-tenant-id", "x.tenant.id", "x-tenant.id", "x-quota-tenant", "x.quota.tenant", "x_tenant_id"):
        async with client.get(gateway.url, headers={"x-api-key": key, name: victim}) as answer:
            assert answer.status == (400 if "_" in name and gateway.kind == "envoy" else 200)
    assert victim not in {value for received in upstream.received for _, value in received.headers}
    assert dev.ledger(victim, "api_calls") == 0
    assert dev.ledger(tenant, "api_calls") == len(upstream.received)


async def test_a_plan_upgraded_in_the_middle_of_traffic_counts_from_the_next_second_on(
    dev: SidecarDev, gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("hard")
    await until(client, gateway.url, key, 429)
    upgrade = asyncio.create_task(asyncio.to_thread(dev.put_tenant, tenant, "large"))
    while not upgrade.done():
        assert set(await statuses(client, gateway.url, key, 1)) <= {200, 429}
    await upgrade
    took_s, _ = await until(client, gateway.url, key, 200)
    assert took_s < 2, "within a second, and what a busy machine adds"
    async with client.get(gateway.url, headers={"x-api-key": key}) as answer:
        assert re.fullmatch(r'"api_calls";q=100000;w=\d+', answer.headers["ratelimit-policy"])
    # What was used under the old plan is used under the new one.
    assert dev.ledger(tenant, "api_calls") >= 22


async def test_counts_of_gateway_application_sidecar_and_ledger_are_one(
    dev: SidecarDev, application: Upstream, upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    for kind, gateway_class in GATEWAYS.items():
        tenant, key = dev.new_tenant("hard")
        folder = tmp_path / kind
        folder.mkdir()
        gateway = gateway_class(folder, authz_port=dev.authz_port, upstream_port=application.port)
        gateway.start()
        try:
            upstream.received.clear()
            before = decisions(dev)
            await statuses(client, gateway.url, key, 30)
            await statuses(client, gateway.url, "unknown", 4)
            after = decisions(dev) - before
            assert gateway.counts(34) == Counts(allowed=20, denied=14, away=0)
            assert after == Counter(allowed=20, limit_reached=10, key_unknown=4)
            assert len(upstream.received) == 20
            assert dev.ledger(tenant, "api_calls") == 20
        finally:
            gateway.stop()


async def test_a_request_that_nginx_starts_over_is_counted_once(
    dev: SidecarDev, upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    tenant, key = dev.new_tenant("hard")
    gateway = Nginx(tmp_path, authz_port=dev.authz_port, upstream_port=upstream.port)
    marker = "        # A location that is only reached from inside"
    again = """
        location /try/ {
            include quota-application.conf;
            try_files /there/is/no/such/file @again;
        }
        location @again {
            include quota-application.conf;
            proxy_pass http://application;
        }
"""
    gateway.start(replace={"nginx.conf": {marker: again + marker}})
    try:
        assert await statuses(client, f"{gateway.url}/try/x", key, 5) == [200] * 5
    finally:
        gateway.stop()
    assert dev.ledger(tenant, "api_calls") == 5


async def test_a_request_that_envoy_redirects_inside_is_counted_once(
    dev: SidecarDev, upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    tenant, key = dev.new_tenant("hard")
    gateway = Envoy(tmp_path, authz_port=dev.authz_port, upstream_port=upstream.port)
    route = "route: { cluster: application, timeout: 60s }"
    redirecting = f"{route[:-2]}, internal_redirect_policy: {{}} }}"
    gateway.start(replace={"envoy.yaml": {route: redirecting}})
    try:
        assert await statuses(client, f"{gateway.url}/redirect?to=/v1/after", key, 5) == [200] * 5
        assert len(upstream.received) == 10
    finally:
        gateway.stop()
    assert dev.ledger(tenant, "api_calls") == 5


async def test_a_hanging_sidecar_is_an_absent_one_and_what_it_allowed_stays_counted(
    dev: SidecarDev, gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("hard")
    assert await statuses(client, gateway.url, key, 3) == [200] * 3
    dev.signal_authz(signal.SIGSTOP)
    try:
        assert await statuses(client, gateway.url, key, 2) == [503] * 2
    finally:
        dev.signal_authz(signal.SIGCONT)
    _, seen = await until(client, gateway.url, key, 200)
    # The gateway gave up on checks that a sidecar, once awake, may still have allowed: in flight, as at a kill.
    assert 3 + seen[200] <= dev.ledger(tenant, "api_calls") <= 3 + seen[200] + 2 + seen[503]


async def test_a_killed_worker_is_replaced_and_nothing_it_counted_is_lost(
    dev: SidecarDev, gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    tenant, key = dev.new_tenant("hard")
    assert await statuses(client, gateway.url, key, 7) == [200] * 7
    dev.signal_authz(signal.SIGKILL)
    _, seen = await until(client, gateway.url, key, 200)
    assert set(seen) <= {200, 429, 503}
    allowed = 7 + seen[200]
    assert dev.ledger(tenant, "api_calls") == allowed
    # The dead worker's lease comes back, so that the cap can still be used up to its last unit, and no further.
    while allowed < 20:
        _, seen = await until(client, gateway.url, key, 200)
        allowed += seen[200]
    _, seen = await until(client, gateway.url, key, 429)
    assert seen[200] == 0
    assert dev.ledger(tenant, "api_calls") == 20


async def test_while_redis_hangs_soft_caps_go_on_and_hard_ones_never_pass_too_much(
    dev: SidecarDev, gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    soft, soft_key = dev.new_tenant("soft")
    hard, hard_key = dev.new_tenant("hard")
    assert await statuses(client, gateway.url, soft_key, 2) == [200] * 2
    counted = Counter(await statuses(client, gateway.url, hard_key, 2))
    assert counted == Counter({200: 2})
    dev.signal_redis(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert await statuses(client, gateway.url, soft_key, 20) == [200] * 20
        counted.update(await statuses(client, gateway.url, hard_key, 30))
        assert time.monotonic() - began < 50 * 0.1, "an outage is no reason to wait"
    finally:
        dev.signal_redis(signal.SIGCONT)
    # Back to a decision about the cap itself.
    _, seen = await until(client, gateway.url, hard_key, 429)
    counted.update(seen)
    assert counted[200] <= 20
    assert set(counted) <= {200, 429, 503}
    assert dev.ledger(hard, "api_calls") == counted[200]
    assert dev.ledger(soft, "api_calls") == 22


async def test_a_redis_that_is_killed_and_comes_back_costs_nothing_and_admits_nothing(
    dev: SidecarDev, gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    soft, soft_key = dev.new_tenant("soft")
    hard, hard_key = dev.new_tenant("hard")
    assert await statuses(client, gateway.url, soft_key, 2) == [200] * 2
    counted = Counter(await statuses(client, gateway.url, hard_key, 5))
    dev.signal_redis(signal.SIGKILL)  # it is started again within a second
    assert await statuses(client, gateway.url, soft_key, 20) == [200] * 20
    began = time.monotonic()
    while counted[200] < 20:
        counted.update(await statuses(client, gateway.url, hard_key, 1))
        assert time.monotonic() - began < BACK_S, counted
    # Until Redis grants again nobody can say more than that nothing is to be had.
    _, seen = await until(client, gateway.url, hard_key, 429)
    counted.update(seen)
    assert set(counted) <= {200, 429, 503}
    assert counted[200] == 20
    assert dev.ledger(hard, "api_calls") == 20
    assert dev.ledger(soft, "api_calls") == 22


@pytest.mark.slow
@pytest.mark.parametrize("kind", GATEWAYS)
async def test_a_whole_installation_stopped_and_started_goes_on_where_it_was(
    kind: str, servers_directory: Path, upstream: Upstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    # Granting resumes this long after Redis was restarted; a minute in production.
    short = {"SIDECAR_RECLAIM_AFTER_MS": "2000", "SIDECAR_LEASE_TTL_MS": "1000", "SIDECAR_SYNC_INTERVAL_MS": "100"}
    own = SidecarDev(servers_directory / f"restarted-{kind}", CATALOGUE, env=short)
    own.start()
    gateway = GATEWAYS[kind](tmp_path, authz_port=own.authz_port, upstream_port=upstream.port)
    gateway.start()
    try:
        tenant, key = own.new_tenant("hard")
        assert await statuses(client, gateway.url, key, 12) == [200] * 12
        assert own.stop() == 0
        assert await statuses(client, gateway.url, key, 2) == [503] * 2
        own.start()
        assert own.ledger(tenant, "api_calls") == 12
        allowed = 12
        while allowed < 20:
            _, seen = await until(client, gateway.url, key, 200)
            allowed += seen[200]
        _, seen = await until(client, gateway.url, key, 429)
        assert seen[200] == 0
        assert own.ledger(tenant, "api_calls") == 20
        own.cli("verify")
    finally:
        gateway.stop()
        own.stop()
