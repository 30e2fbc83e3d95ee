"""Changes of plans, overrides, statuses, keys and the catalogue reach every worker within a second."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.servers.accounts import create_key, put_tenant
from tests.servers.load_client import Answer, LoadClient, until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent.parent / "faults" / "limits.yaml"
WORKERS = 3
CONNECTIONS = 24  # so many that each worker has one: the kernel spreads them
WITHIN_S = 1.0
BUSY_S = 1.0  # what a busy machine and the end of a command that made the change may add


@pytest.fixture(scope="module")
def catalogue(servers_directory: Path) -> Path:
    file = servers_directory / "changing.yaml"
    file.write_text(CATALOGUE.read_text())
    return file


@pytest.fixture(scope="module")
def dev(servers_directory: Path, catalogue: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "changes", catalogue, workers=WORKERS) as running:
        yield running


Ask = Callable[[], Awaitable[list[Answer]]]


@asynccontextmanager
async def everywhere(dev: SidecarDev, tenant: str = "", key: str = "", path: str = "/v1/free/x") -> AsyncIterator[Ask]:
    """Ask through many connections at once, by default on a route that costs nothing."""
    headers = {"x-api-key": key} if key else {}
    clients = [LoadClient(dev.authz_port, tenant, headers) for _ in range(CONNECTIONS)]

    async def ask() -> list[Answer]:
        return [await client.decided(path) for client in clients]

    try:
        yield ask
    finally:
        for client in clients:
            await client.close()


async def seen(ask: Ask, wanted: Callable[[Answer], bool]) -> None:
    """Every worker answers so within a second."""

    async def all_do() -> bool:
        return all(wanted(answer) for answer in await ask())

    await soon(all_do)


async def soon(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S + BUSY_S):
        while not await condition():
            pass


async def test_a_plan_change_reaches_every_worker(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    async with everywhere(dev, tenant) as ask:
        await seen(ask, lambda answer: answer.header("x-quota-plan") == "small")
        dev.put_tenant(tenant, "large")
        await seen(ask, lambda answer: answer.header("x-quota-plan") == "large")


async def test_a_spent_tenant_goes_on_after_an_upgrade_and_keeps_what_it_used(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    async with LoadClient(dev.authz_port, tenant) as client:

        async def allowed() -> bool:
            return (await client.decided()).allowed

        assert [(await client.decided()).status for _ in range(21)] == [200] * 20 + [429]
        dev.put_tenant(tenant, "large")
        await soon(allowed)
    async with everywhere(dev, tenant) as ask:
        # A second after its last request this tenant is idle everywhere; going back is known everywhere, too.
        dev.put_tenant(tenant, "small")
        await seen(ask, lambda answer: answer.reason == "limit_reached")
    assert dev.ledger(tenant, "api_calls") == 21


async def test_an_override_reaches_every_worker_and_goes_again(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "small")
    async with everywhere(dev, tenant) as ask:
        await ask()
        dev.cli("tenant", "override", tenant, "limits.api_calls", "0")
        await seen(ask, lambda answer: answer.reason == "limit_reached")
        dev.cli("tenant", "override", tenant, "limits.api_calls", "--clear")
        await seen(ask, lambda answer: answer.allowed)


async def test_a_suspension_reaches_every_worker_and_is_lifted_everywhere(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "large")
    async with everywhere(dev, tenant) as ask:
        await seen(ask, lambda answer: answer.allowed)
        dev.cli("tenant", "suspend", tenant)
        await seen(ask, lambda answer: (answer.status, answer.reason) == (402, "payment_required"))
        dev.cli("tenant", "activate", tenant)
        await seen(ask, lambda answer: answer.allowed)


async def test_a_revoked_key_is_unknown_to_every_worker(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "large")
    key, other = create_key(dev, tenant), create_key(dev, tenant)
    async with everywhere(dev, key=key) as ask, everywhere(dev, key=other) as ask_other:
        await seen(ask, lambda answer: answer.allowed)
        await seen(ask_other, lambda answer: answer.allowed)
        dev.cli("key", "revoke", key)
        await seen(ask, lambda answer: (answer.status, answer.reason) == (401, "key_unknown"))
        await seen(ask_other, lambda answer: answer.allowed)


async def test_a_key_made_after_it_was_refused_is_known_at_once(dev: SidecarDev) -> None:
    """An unknown key is remembered for some seconds; making one must not have to wait for that."""
    tenant = put_tenant(dev, "large")
    async with everywhere(dev, key="guessed") as ask:
        await seen(ask, lambda answer: answer.reason == "key_unknown")
    key = create_key(dev, tenant)
    async with everywhere(dev, key=key) as ask:
        await seen(ask, lambda answer: answer.allowed)


async def test_a_tenant_that_had_the_default_plan_gets_its_own(dev: SidecarDev) -> None:
    tenant = "unknown-at-first"
    async with everywhere(dev, tenant) as ask:
        await seen(ask, lambda answer: answer.header("x-quota-plan") == "fallback")
        put_tenant(dev, "large", tenant)
        await seen(ask, lambda answer: answer.header("x-quota-plan") == "large")


async def test_a_changed_catalogue_is_in_force_within_a_second_and_a_bad_one_keeps_the_last_good_one(
    dev: SidecarDev, catalogue: Path
) -> None:
    good = catalogue.read_text()
    tenant = put_tenant(dev, "small")
    async with everywhere(dev, tenant) as ask:
        await seen(ask, lambda answer: "q=20;" in answer.header("ratelimit-policy"))
        catalogue.write_text(good.replace("{included: 20, period: month", "{included: 25, period: month"))
        await seen(ask, lambda answer: "q=25;" in answer.header("ratelimit-policy"))
        catalogue.write_text(good.replace("{included: 20, period: month", "{inclouded: -1, period: month"))
        await until(lambda: "inclouded" in refused_catalogue(dev), 5)
        assert dev.ready()
        assert all("q=25;" in answer.header("ratelimit-policy") for answer in await ask())
        catalogue.write_text(good)
        await seen(ask, lambda answer: "q=20;" in answer.header("ratelimit-policy"))
        await until(lambda: refused_catalogue(dev) == "", 5)


def refused_catalogue(dev: SidecarDev) -> str:
    """What /readyz says is wrong with the catalogue file; "" for nothing."""
    with urllib.request.urlopen(f"{dev.at.ops}/readyz", timeout=5) as answer:
        file = json.loads(answer.read())["components"]["catalogue_file"]
    return "" if file["ok"] else str(file["processes"]["supervisor"])
