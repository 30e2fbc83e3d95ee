"""Hard caps under many clients over several workers: never over-admitted, and used up to the last unit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.accounts import KEYS, put_tenant
from tests.servers.load_client import LoadClient, Tally, crowd
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent / "limits.yaml"
CLIENTS = 200
CAP = 10_000
RETRY_S = 0.2


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "caps", CATALOGUE, workers=4) as running:
        yield running


async def until_spent(client: LoadClient, tally: Tally, path: str = "/v1/things") -> bool:
    """One request, as a client makes it that comes back after Retry-After until the period is over."""
    answer = await client.ask(path)
    tally.add(answer)
    if answer is None or answer.allowed:
        return True
    if answer.reason == "limit_reached":
        return False
    # On a busy machine Redis may take longer than a request waits for it, which is no reason to go away either.
    again = {"limit_contended": (429, "1"), "store_unavailable": (503, "2")}
    assert (answer.status, answer.header("retry-after")) == again[answer.reason]
    await asyncio.sleep(RETRY_S)
    return True


async def test_200_clients_over_four_workers_get_exactly_what_the_cap_allows(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "capped")
    allowed_at_first_end: list[int] = []

    async def turn(client: LoadClient, tally: Tally) -> bool:
        more = await until_spent(client, tally)
        if not more and not allowed_at_first_end:
            allowed_at_first_end.append(tally.allowed)
        return more

    tally = await crowd(dev.authz_port, CLIENTS, [tenant], turn)
    assert tally.allowed == CAP
    assert tally.lost == 0
    # Nobody was told that all is spent while there was still something to be had.
    assert allowed_at_first_end[0] > CAP - CLIENTS
    assert dev.ledger(tenant, "api_calls") == CAP


async def test_the_last_one_is_allowed_when_only_one_client_is_left(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "capped")

    async def leaves_early(client: LoadClient, tally: Tally) -> bool:
        return tally.allowed < CAP - 2 * CLIENTS and await until_spent(client, tally)

    together = await crowd(dev.authz_port, CLIENTS, [tenant], leaves_early)
    assert together.allowed < CAP
    alone = await crowd(dev.authz_port, 1, [tenant], until_spent)
    assert together.allowed + alone.allowed == CAP
    assert dev.ledger(tenant, "api_calls") == CAP


async def test_two_caps_at_once_are_both_exact(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "capped_twice")
    tallies = {"/v1/things": Tally(), "/v1/dear/one": Tally()}

    async def run(path: str) -> None:
        async def turn(client: LoadClient, tally: Tally) -> bool:
            return await until_spent(client, tally, path)

        tallies[path] = await crowd(dev.authz_port, CLIENTS // 2, [tenant], turn)

    await asyncio.gather(*(run(path) for path in tallies))
    dear = tallies["/v1/dear/one"].allowed
    assert dear <= 3_000
    assert dear + tallies["/v1/things"].allowed == CAP
    assert dev.ledger(tenant, "api_calls") == CAP
    usage = {limit["limit"]: limit["used"] for limit in dev.usage(tenant)["limits"]}
    assert usage == {"api_calls": CAP, "dear_calls": dear}


async def test_the_cap_of_a_route_is_exact_below_the_cap_of_the_tenant(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "capped_twice")

    async def turn(client: LoadClient, tally: Tally) -> bool:
        return await until_spent(client, tally, "/v1/dear/one")

    tally = await crowd(dev.authz_port, CLIENTS, [tenant], turn)
    assert tally.allowed == 3_000
    assert dev.ledger(tenant, "api_calls") == 3_000


async def test_members_of_an_organization_share_its_cap_exactly(dev: SidecarDev) -> None:
    parent = put_tenant(dev, "organization")
    members = [put_tenant(dev, "member", parent=parent) for _ in range(2)]
    tallies: dict[str, Tally] = {}

    async def run(member: str) -> None:
        tallies[member] = await crowd(dev.authz_port, CLIENTS // 2, [member], until_spent)

    await asyncio.gather(*(run(member) for member in members))
    each = [tallies[member].allowed for member in members]
    assert sum(each) == 3_000
    assert all(allowed <= 2_000 for allowed in each)
    assert [dev.ledger(member, "api_calls") for member in members] == each


async def test_tenants_of_one_shard_that_come_at_the_same_moment_are_all_served(dev: SidecarDev) -> None:
    """Each of their first requests waits for a lease, with one call at a time for all of the shard."""
    shard = KEYS.shard_of("first")
    names = [name for number in range(400) if KEYS.shard_of(name := f"together-{number}") == shard][:12]
    for name in names:
        put_tenant(dev, "large", name)
    for together in (names[:6], names[6:]):

        async def turn(client: LoadClient, tally: Tally) -> bool:
            tally.add(await client.ask())
            return False

        tally = await crowd(dev.authz_port, 60, together, turn)
        assert tally.reasons["limit_contended"] == 0
        assert tally.allowed + tally.reasons["store_unavailable"] == 60


async def test_nothing_differs_afterwards(dev: SidecarDev) -> None:
    assert dev.cli_json("verify") == []
