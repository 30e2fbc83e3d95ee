"""Redis away behind real gateways: what `closed`, `open` and `bounded` look like to a client, and how each ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.gateways import GATEWAYS, Gateway
from tests.servers.load_client import LoadClient
from tests.servers.served import Served, eventually
from tests.servers.upstream import Upstream

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parents[1] / "faults" / "limits.yaml"
SHORT = {
    "SIDECAR_LEASE_TTL_MS": "800",
    "SIDECAR_RECLAIM_AFTER_MS": "3000",
    "SIDECAR_SYNC_INTERVAL_MS": "100",
    "SIDECAR_FLUSH_INTERVAL_MS": "100",
}
REDUCED = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
POLICIES = ("closed", "open", "bounded", "graceful")
BOUND = 30  # of the plan "bounded"
FAILURES_UNTIL_OPEN = 3
# The promise is a second. Two gateways, a client and the rest of the suite share the processors with the sidecar: the
# other second is for waiting for a turn. A backoff of seconds, as drivers have them, is still found out.
BACK_S = 2.0
# Of the plan "mixed": a plain request costs a call (its limit is open), a heavy one 2.5 credits as well (closed).
PLAIN, HEAVY = "/v1/x", "/v1/heavy/x"
COSTS = {PLAIN: 1, HEAVY: 1 + 25}
Ask = Callable[[str], Awaitable[aiohttp.ClientResponse]]


@pytest.fixture
async def served(servers_directory: Path, database: str) -> AsyncIterator[Served]:
    async with Served(servers_directory / f"outage-{database[-12:]}", database, CATALOGUE, SHORT) as running:
        yield running


@pytest.fixture
def gateways(served: Served, upstream: Upstream, tmp_path: Path) -> Iterator[list[Gateway]]:
    started = []
    try:
        for kind, gateway_class in GATEWAYS.items():
            folder = tmp_path / kind
            folder.mkdir()
            gateway = gateway_class(folder, authz_port=served.authz_port, upstream_port=upstream.port)
            gateway.start()
            started.append(gateway)
        yield started
    finally:
        for gateway in started:
            gateway.stop()


async def away(served: Served, how: str) -> None:
    if how == "hangs":
        served.hang()
    elif how == "drops packets":
        served.proxy.hold_up()
    else:
        await served.proxy.stop()


async def back(served: Served, how: str) -> None:
    if how == "hangs":
        served.wake()
    elif how == "drops packets":
        served.proxy.resume()
    else:
        await served.proxy.start()


class Told:
    """A client's requests of one tenant at one gateway, and what was answered."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway, tenant: str, key: str) -> None:
        self.gateway = gateway
        self.tenant = tenant
        self.allowed = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.problem: dict[str, object] = {}
        self._session = session
        self._key = key

    async def ask(self, path: str = PLAIN) -> int:
        async with self._session.get(f"{self.gateway.url}{path}", headers={"x-api-key": self._key}) as answer:
            self.status = answer.status
            self.headers = {name.lower(): value for name, value in answer.headers.items()}
            denied = answer.content_type == "application/problem+json"
            self.problem = await answer.json(content_type=None) if denied else {}
        self.allowed += self.status == 200
        return self.status

    async def often(self, times: int) -> Counter[tuple[int, str]]:
        """Ask so often, one after another; statuses with the mark of each."""
        seen = Counter[tuple[int, str]]()
        for _ in range(times):
            await self.ask()
            seen[self.status, self.headers.get("x-quota-status", "")] += 1
        return seen

    async def is_under_way(self) -> bool:
        """Whether it was allowed often enough to be known and, where it has a hard cap, to hold a lease."""
        await self.ask()
        return self.allowed >= 8

    async def is_marked(self, status: int, mark: str) -> bool:
        await self.ask()
        return (self.status, self.headers.get("x-quota-status", "")) == (status, mark)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "drops packets", "refuses"])
async def test_each_policy_is_what_the_client_sees_while_redis_is_away_and_ends_with_the_outage(
    how: str, served: Served, gateways: list[Gateway], client: aiohttp.ClientSession
) -> None:
    made = iter(await served.new_tenants(*POLICIES * len(gateways)))
    told = {gateway.kind: {plan: Told(client, gateway, *next(made)) for plan in POLICIES} for gateway in gateways}
    for tenants in told.values():
        for one in tenants.values():
            await eventually(one.is_under_way)
    waits = await served.metric("sidecar_waits_total", outcome="timed_out")

    await away(served, how)
    for kind, tenants in told.items():
        await _until_the_lease_is_over(tenants["closed"])
        await _until_degraded(tenants)
        _check_denial(kind, tenants["closed"])
    assert await served.metric("sidecar_breaker_open") == 1
    # Each of the few calls that failed before the breaker opened can have made one request wait; one more may have
    # come while the last of them was under way.
    waited = await served.metric("sidecar_waits_total", outcome="timed_out")
    assert waited - waits <= FAILURES_UNTIL_OPEN + 1
    waits = await served.metric("sidecar_waits_total")
    asked = await served.metric("sidecar_decisions_total")
    for tenants in told.values():
        assert await tenants["closed"].often(40) == {(503, tenants["closed"].headers.get("x-quota-status", "")): 40}
        assert await tenants["open"].often(40) == {(200, "degraded"): 40}
        assert await tenants["graceful"].often(40) == {(200, "grace"): 40}
        await tenants["bounded"].often(40)
        assert tenants["bounded"].status == 503
        _check_denial(tenants["bounded"].gateway.kind, tenants["bounded"])
    assert await served.metric("sidecar_decisions_total") - asked == 2 * 160
    assert await served.metric("sidecar_waits_total") == waits
    assert await served.metric("sidecar_requests_waiting") == 0

    await back(served, how)
    began = asyncio.get_running_loop().time()
    closed = [tenants["closed"] for tenants in told.values()]
    await asyncio.gather(*(eventually(lambda one=one: one.is_marked(200, "ok")) for one in closed))
    assert asyncio.get_running_loop().time() - began < BACK_S
    for tenants in told.values():
        for plan in ("closed", "open", "bounded"):
            await eventually(lambda one=tenants[plan]: one.is_marked(200, "ok"), 5)
    await eventually(lambda: _is(served, "sidecar_breaker_open", 0), 5)
    await eventually(lambda: _is(served, "sidecar_degraded_limits", 0), 5)
    await served.flush()
    for tenants in told.values():
        for one in tenants.values():
            assert await served.counted(one.tenant) == one.allowed
    assert await served.verify() == "[]"


@pytest.mark.slow
async def test_each_limit_of_one_plan_follows_its_own_policy_and_the_503_names_the_closed_one(
    served: Served, gateways: list[Gateway], client: aiohttp.ClientSession
) -> None:
    told = [
        Told(client, gateway, *of)
        for gateway, of in zip(gateways, await served.new_tenants(*["mixed"] * len(gateways)), strict=True)
    ]
    counted = Counter[str]()
    for one in told:
        for path in (PLAIN, HEAVY):
            await eventually(lambda one=one, path=path: _is_allowed_and_marked(one, path, "ok", counted))
    served.proxy.hold_up()
    for one in told:
        await eventually(lambda one=one: _is_closed(one, counted))
        for _ in range(40):
            assert await _is_allowed_and_marked(one, PLAIN, "degraded", counted)
            assert await _is_closed(one, counted)
        if one.gateway.kind == "nginx":
            assert one.problem["violated-policies"] == ["credits"]
    async with LoadClient(served.authz_port, told[0].tenant) as direct:
        answer = await direct.insist(HEAVY)
        assert (answer.status, answer.problem["violated-policies"]) == (503, ["credits"])
    served.proxy.resume()
    for one in told:
        for path in (HEAVY, PLAIN):
            await eventually(lambda one=one, path=path: _is_allowed_and_marked(one, path, "ok", counted))
    await served.flush()
    for one in told:
        expected = sum(COSTS[path] * counted[f"{one.tenant} {path}"] for path in COSTS)
        assert await served.counted(one.tenant) == expected
    assert await served.verify() == "[]"


async def _is_allowed_and_marked(one: Told, path: str, mark: str, counted: Counter[str]) -> bool:
    """Ask once; whether it is allowed with that mark. What is allowed is counted by tenant and path."""
    allowed = await one.ask(path) == 200
    counted[f"{one.tenant} {path}"] += allowed
    return allowed and one.headers["x-quota-status"] == mark


async def _is_closed(one: Told, counted: Counter[str]) -> bool:
    """Whether a heavy request is refused because of the outage."""
    if await _is_allowed_and_marked(one, HEAVY, "", counted) or one.status == 200:
        return False
    _check_denial(one.gateway.kind, one)
    return True


async def _until_the_lease_is_over(closed: Told) -> None:
    async def denied() -> bool:
        return await closed.ask() == 503

    await eventually(denied, 10)


async def _until_degraded(tenants: dict[str, Told]) -> None:
    """Until the outage decides; a bound begins with it and lets exactly its units through."""
    await eventually(lambda: tenants["open"].is_marked(200, "degraded"), 10)
    bounded = tenants["bounded"]
    passed = 0
    while await bounded.ask() == 200:
        passed += bounded.headers["x-quota-status"] == "degraded"
        assert passed <= BOUND
    assert passed == BOUND


def _check_denial(kind: str, one: Told) -> None:
    """Envoy takes any 5xx for an absent sidecar and answers itself; Nginx passes the sidecar's own answer on."""
    assert (one.status, one.problem["type"], one.problem["status"]) == (503, REDUCED, 503)
    assert int(one.headers["retry-after"]) == (1 if kind == "envoy" else 2)
    assert ("reason" in one.problem) == (kind == "nginx")
    if kind == "nginx":
        assert one.problem["reason"] == "store_unavailable"
        assert one.headers["x-quota-status"] == "denied"


async def _is(served: Served, name: str, value: float) -> bool:
    return await served.metric(name) == value
