"""A worker that may open no further file or connection: who is connected is served, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections import Counter, deque
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.servers.descriptors import descriptors, no_descriptors
from tests.servers.load_client import LoadClient
from tests.servers.served import Served, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CATALOGUE = Path(__file__).parent / "limits.yaml"
LEASE_TTL_S = 2.0
ENVIRONMENT = {"SIDECAR_LEASE_TTL_MS": "2000", "SIDECAR_RECLAIM_AFTER_MS": "30000", "SIDECAR_SYNC_INTERVAL_MS": "100"}
MARKS = {"closed": "denied", "open": "degraded", "graceful": "grace"}  # of an outage
EMFILE = "Too many open files"
UNDER_WAY = 10
ASKED = 200
FEW = 256
CUTS = 3
PAUSE_S = 0.005
OVER_S = 0.5  # longer than a lease: whoever did not reach Redis is found out


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
    folder = servers_directory / f"descriptors-{database[-12:]}"
    async with Served(folder, database, CATALOGUE, ENVIRONMENT) as running:
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
        await eventually(lambda: _logged(served, "the folder of journals is away"))  # it is looked at now and then
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


async def test_connections_that_fill_a_worker_leave_descriptors_for_redis_and_the_journal(served: Served) -> None:
    """The hard limit of a container is often low, and peers that come and stay are in nobody's hand."""
    await replaced_with_few_descriptors(served)
    named = zip(("closed", "open"), await served.new_tenants("closed", "open"), strict=True)
    tenants = {plan: Tenant(served, name) for plan, (name, _) in named}
    for tenant in tenants.values():
        await eventually(lambda of=tenant: of.is_marked("ok"))
    refused = await served.metric("sidecar_connections_refused_total")
    async with crowd(served.authz_port):
        await eventually(lambda: _is_above(served, refused))
        for _ in range(CUTS):
            served.proxy.cut()
            until_s = asyncio.get_running_loop().time() + LEASE_TTL_S + OVER_S
            while asyncio.get_running_loop().time() < until_s:
                assert [await tenant.mark() for tenant in tenants.values()] == ["ok", "ok"]
                await asyncio.sleep(PAUSE_S)
        assert await served.metric("sidecar_journal_writable") == 1
    assert EMFILE not in served.program.log
    await served.flush()
    for tenant in tenants.values():
        assert await served.counted(tenant.name) == tenant.allowed
        await tenant.client.close()


async def replaced_with_few_descriptors(served: Served) -> None:
    """Let the next worker have FEW: it inherits the limits of its supervisor."""
    pid = served.worker()
    resource.prlimit(served.program.pid, resource.RLIMIT_NOFILE, (FEW, FEW))
    os.kill(pid, signal.SIGKILL)

    async def replaced() -> bool:
        return served.worker() not in (0, pid)

    await eventually(replaced)
    await served.program.ready()


@contextlib.asynccontextmanager
async def crowd(port: int) -> AsyncIterator[None]:
    """Peers that connect one after the other and say nothing: twice as many as the worker has descriptors stay."""
    loop, peers = asyncio.get_running_loop(), deque[socket.socket]()

    async def come() -> None:
        while True:
            peers.append(socket.socket())
            peers[-1].setblocking(False)
            await loop.sock_connect(peers[-1], ("127.0.0.1", port))
            if len(peers) > 2 * FEW:
                peers.popleft().close()
            await asyncio.sleep(PAUSE_S)

    coming = asyncio.create_task(come())
    try:
        yield
        assert not coming.done()
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        for peer in peers:
            peer.close()


async def _is_above(served: Served, refused: float) -> bool:
    return await served.metric("sidecar_connections_refused_total") > refused


async def _logged(served: Served, text: str) -> bool:
    return text in served.program.log
