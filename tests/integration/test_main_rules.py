"""Every rule of deciding, as a gateway sees it on the decision listener, over real Redis and Postgres."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.accounts import create_key, put_tenant
from tests.servers.load_client import LoadClient
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent.parent / "faults" / "limits.yaml"


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "rules", CATALOGUE) as running:
        yield running


async def statuses(dev: SidecarDev, tenant: str, number: int, path: str = "/v1/things", **headers: str) -> list[int]:
    """Ask one after the other, through one connection."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with LoadClient(dev.authz_port, tenant, named) as client:
        return [(await client.decided(path)).status for _ in range(number)]


def post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


async def test_a_denial_says_what_is_wrong_and_when_it_ends(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    async with LoadClient(dev.authz_port, tenant) as client:
        answers = [await client.decided() for _ in range(21)]
    first, near, last, denied = answers[0], answers[15], answers[19], answers[20]
    assert [first.mark, near.mark, last.mark, denied.mark] == ["ok", "near", "near", "denied"]
    assert first.header("ratelimit").startswith('"api_calls";r=19;t=')
    assert last.header("ratelimit").startswith('"api_calls";r=0;t=')
    assert first.header("x-quota-tenant") == tenant
    assert first.header("x-quota-feature-support") == "none"
    problem = denied.problem
    assert (denied.status, problem["reason"], problem["limit"], problem["used"]) == (429, "limit_reached", 20, 20)
    assert problem["violated-policies"] == ["api_calls"]
    assert problem["upgrade-url"] == "https://example.com/upgrade"
    reset_s = int(denied.header("ratelimit").rpartition("t=")[2])
    assert int(denied.header("retry-after")) >= reset_s


async def test_a_feature_the_plan_lacks_is_denied_and_costs_nothing(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    async with LoadClient(dev.authz_port, tenant) as client:
        denied = await client.decided("/v1/admin/users")
        assert (denied.status, denied.reason) == (403, "feature_missing")
        assert (await client.decided()).header("ratelimit").startswith('"api_calls";r=19;')
    assert await statuses(dev, put_tenant(dev, "large"), 1, "/v1/admin/users") == [200]


async def test_a_tenant_nobody_knows_gets_the_default_plan(dev: SidecarDev) -> None:
    assert await statuses(dev, "stranger", 8) == [200] * 7 + [429]
    assert dev.ledger("stranger", "api_calls") == 7


async def test_a_request_without_identity_gets_the_anonymous_plan(dev: SidecarDev) -> None:
    async with LoadClient(dev.authz_port) as client:
        answers = [await client.decided() for _ in range(10)]
    assert [answer.status for answer in answers] == [200] * 9 + [429]
    assert answers[0].header("x-quota-plan") == "anonymous"


async def test_an_unknown_key_is_refused_and_never_anonymous(dev: SidecarDev) -> None:
    assert await statuses(dev, "", 2, x_api_key="guessed") == [401, 401]


async def test_a_limit_of_each_key_counts_each_key_and_all_of_them(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "keyed")
    one, other = create_key(dev, tenant), create_key(dev, tenant)
    assert await statuses(dev, "", 6, x_api_key=one) == [200] * 5 + [429]
    assert await statuses(dev, "", 4, x_api_key=other) == [200] * 3 + [429]  # eight in all
    assert dev.ledger(tenant, "api_calls") == 8


async def test_a_limit_of_each_user_counts_each_user(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "per_user")
    assert await statuses(dev, tenant, 6, x_user_id="ann") == [200] * 5 + [429]
    assert await statuses(dev, tenant, 6, x_user_id="bob") == [200] * 5 + [429]


async def test_several_metrics_are_spent_all_or_none(dev: SidecarDev) -> None:
    """Two calls of 2.5 credits fit into 5; the third spends neither credits nor a call."""
    tenant = put_tenant(dev, "credited")
    assert await statuses(dev, tenant, 3, "/v1/heavy/x") == [200, 200, 429]
    dev.cli("flush")
    usage = dev.usage(tenant)
    assert usage["ledger"] == {"api_calls": 2, "credits": 5}
    assert [limit["used"] for limit in usage["limits"]] == [2, 5]


async def test_a_cost_that_does_not_fit_leaves_room_for_smaller_ones(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    assert await statuses(dev, tenant, 1) == [200]
    assert await statuses(dev, tenant, 2, "/v1/bulk/x") == [200, 429]
    assert await statuses(dev, tenant, 10) == [200] * 9 + [429]


async def test_a_route_that_wants_headroom_is_free_until_the_limit_is_used_up(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    assert await statuses(dev, tenant, 30, "/v1/free/x") == [200] * 30
    assert await statuses(dev, tenant, 20) == [200] * 20
    assert await statuses(dev, tenant, 1, "/v1/free/x") == [429]


async def test_a_repeated_request_id_is_counted_once(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    assert await statuses(dev, tenant, 30, x_request_id="the-same") == [200] * 30
    assert await statuses(dev, tenant, 20) == [200] * 19 + [429]
    assert dev.ledger(tenant, "api_calls") == 20


async def test_explaining_spends_nothing(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    for _ in range(25):
        told = post(f"{dev.at.local}/v1/explain", {"tenant": tenant, "path": "/v1/things"})
        assert (told["allow"], told["status"], told["plan"], told["costs"]) == (True, 200, "small", {"api_calls": 1})
        assert [limit["used"] for limit in told["limits"]] == [0]
    assert await statuses(dev, tenant, 21) == [200] * 20 + [429]
    told = post(f"{dev.at.local}/v1/explain", {"headers": {"X-Tenant-Id": tenant}, "path": "/v1/things"})
    assert (told["allow"], told["status"], told["reason"]) == (False, 429, "limit_reached")
    with urllib.request.urlopen(f"{dev.at.local}/v1/limits/{tenant}", timeout=10) as answer:
        assert [limit["used"] for limit in json.loads(answer.read())["limits"]] == [20]


async def test_a_limit_in_shadow_reports_and_allows(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "shadowed")
    async with LoadClient(dev.authz_port, tenant) as client:
        answers = [await client.decided() for _ in range(8)]
    assert {answer.status for answer in answers} == {200}
    assert [answer.mark for answer in answers[4:]] == ["near", "shadow", "shadow", "shadow"]
    assert dev.ledger(tenant, "api_calls") == 8


async def test_a_tenant_in_shadow_is_never_denied(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small", shadow=True)
    assert await statuses(dev, tenant, 25) == [200] * 25
    assert await statuses(dev, tenant, 1, "/v1/admin/x") == [200]
    assert dev.ledger(tenant, "api_calls") == 26


async def test_a_buffer_is_room_beyond_the_included_amount_and_then_it_stops(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "buffered")
    async with LoadClient(dev.authz_port, tenant) as client:
        answers = [await client.decided() for _ in range(13)]
    assert [answer.status for answer in answers] == [200] * 12 + [429]
    assert [answer.mark for answer in answers[9:]] == ["near", "grace", "grace", "denied"]


async def test_a_ceiling_stops_billed_overage(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "ceiling")
    async with LoadClient(dev.authz_port, tenant) as client:
        answers = [await client.decided() for _ in range(16)]
    assert [answer.status for answer in answers] == [200] * 15 + [429]
    assert [answer.mark for answer in answers[9:]] == ["near"] + ["over"] * 5 + ["denied"]


async def test_billed_overage_goes_on_without_a_ceiling(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "billed")
    assert await statuses(dev, tenant, 40) == [200] * 40
    assert dev.ledger(tenant, "api_calls") == 40


async def test_a_limit_of_a_minute_is_fresh_in_the_next_one(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "minutely")
    to_next_minute(dev)
    for _ in range(2):
        async with LoadClient(dev.authz_port, tenant) as client:
            answers = [await client.decided() for _ in range(31)]
        assert [answer.status for answer in answers] == [200] * 30 + [429]
        assert 0 < int(answers[30].header("retry-after")) <= 60
        dev.advance_clock("60s")
    assert dev.ledger(tenant, "api_calls") == 60


async def test_a_limit_of_a_second_lets_its_number_through_each_second(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "secondly")
    async with LoadClient(dev.authz_port, tenant) as client:
        answers = [await client.insist() for _ in range(40)]
        denied = [answer for answer in answers if not answer.allowed]
        assert denied
        assert {(answer.status, answer.header("retry-after")) for answer in denied} == {(429, "1")}
        # Whoever comes back when told to gets through: at most one of these waits is until the second turns.
        allowed = sum(answer.allowed for answer in answers)
        dev.advance_clock("1s")
        assert (await client.decided()).allowed
    assert dev.ledger(tenant, "api_calls") == allowed + 1


def to_next_minute(dev: SidecarDev) -> None:
    """Move the clock to the beginning of a minute, so that a test fits into one."""
    offset_ms = post(f"{dev.at.ops}/dev/clock", {"advance": "1ms"})["offset_ms"]
    into_ms = (time.time_ns() // 1_000_000 + offset_ms) % 60_000
    seconds, ms = divmod(60_000 - into_ms, 1_000)
    dev.advance_clock(f"{seconds}s{ms}ms")
