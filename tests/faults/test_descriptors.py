"""A worker that may open no further file or connection: who is connected is served, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.servers.descriptors import descriptors, no_descriptors
from tests.servers.load_client import LoadClient
from tests.servers.served import Served, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CATALOGUE = Path(__file__).parent / "limits.yaml"
ENVIRONMENT = {"SIDECAR_LEASE_TTL_MS": "800", "SIDECAR_RECLAIM_AFTER_MS": "30000", "SIDECAR_SYNC_INTERVAL_MS": "100"}
MARKS = {"closed": "denied", "open": "degraded", "graceful": "grace"}  # of an outage
EMFILE = "Too many open files"
UNDER_WAY = 10
ASKED = 200


class Tenant:
    """A tenant with one connection, and how often it was allowed."""

    def __init__(self, served: Served, name: str) -> None:
        self.name = name
        self.allowed = 0
        self.client = LoadClient(served.authz_port, name)

    async def mark(self) -> str:
        answer = await self.client.ask()
        assert answer is not None, "a connection was lost"
        self.allowed += answer.allowed
        return answer.mark

    async def is_marked(self, mark: str) -> bool:
        return await self.mark() == mark


@pytest.fixture
async def served(servers_directory: Path, database: str) -> AsyncIterator[Served]:
    async with Served(servers_directory / "descriptors", database, CATALOGUE, ENVIRONMENT) as running:
        yield running


async def test_without_descriptors_who_is_connected_is_answered_from_memory_and_all_comes_back_with_them(
    served: Served,
) -> None:
    named = zip(MARKS, await served.new_tenants(*MARKS), strict=True)
    tenants = {plan: Tenant(served, name) for plan, (name, _) in named}
    for tenant in tenants.values():
        for _ in range(UNDER_WAY):
            await tenant.mark()
    pid = served.worker()
    before = descriptors(pid)
    with no_descriptors(pid):
        served.proxy.cut()
        newcomer = LoadClient(served.authz_port, tenants["open"].name)
        waiting = asyncio.create_task(newcomer.ask())
        for plan, tenant in tenants.items():
            await eventually(lambda of=tenant, mark=MARKS[plan]: of.is_marked(mark))
        for plan, tenant in tenants.items():
            assert Counter([await tenant.mark() for _ in range(ASKED)]) == {MARKS[plan]: ASKED}
        await eventually(lambda: _logged(served, EMFILE))
        assert not waiting.done(), "a new connection was accepted"
        assert descriptors(pid) < before
    answer = await waiting
    assert answer is not None
    assert answer.allowed
    await newcomer.close()
    tenants["open"].allowed += 1
    for plan in ("closed", "open"):
        await eventually(lambda of=tenants[plan]: of.is_marked("ok"))
    await eventually(lambda: _logged(served, "the folder of journals is back"))
    assert served.worker() == pid
    assert "a loop of the core failed" not in served.program.log
    await served.flush()
    for tenant in tenants.values():
        assert await served.counted(tenant.name) == tenant.allowed
        await tenant.client.close()
    assert await served.verify() == "[]"


async def _logged(served: Served, text: str) -> bool:
    return text in served.program.log
