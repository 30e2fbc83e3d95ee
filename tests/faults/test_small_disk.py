"""A real file system without a byte left: a worker that starts on it says so, and its counts get there afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.servers.load_client import LoadClient
from tests.servers.served import Served, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CATALOGUE = Path(__file__).parent / "limits.yaml"
ENVIRONMENT = {"SIDECAR_SYNC_INTERVAL_MS": "100", "SIDECAR_RECLAIM_AFTER_MS": "30000"}
BEFORE, FULL, CUT_OFF = 10, 20, 300


@pytest.fixture
async def served(servers_directory: Path, database: str) -> AsyncIterator[Served]:
    folder = servers_directory / "small-disk"
    async with Served(folder, database, CATALOGUE, ENVIRONMENT, small_disk=True) as running:
        if not running.program.disk.mounted:
            pytest.skip("no file system may be mounted here, which takes root")
        yield running


async def test_what_a_worker_counts_on_a_full_disk_survives_its_kill_once_there_is_room(served: Served) -> None:
    """Redis is away in the end, so that nothing but the journal can have it."""
    [(tenant, _)] = await served.new_tenants("open")
    async with LoadClient(served.authz_port, tenant) as client:
        await allowed(client, BEFORE)
        assert await told(served) == (200, True, 1)

        served.program.disk.fill()
        await replaced(served)
        await eventually(lambda: is_told(served, 200, durable=False, writable=0))
        assert "No space left on device" in str((await readiness(served))[1]["journal"])
        await allowed(client, FULL)
        served.proxy.hold_up()
        await allowed(client, CUT_OFF)
        assert await told(served) == (200, False, 0)

        served.program.disk.free()
        await eventually(lambda: is_told(served, 200, durable=True, writable=1))
        await replaced(served)
        served.proxy.resume(late=False)
    await served.flush()
    assert await served.counted(tenant) == BEFORE + FULL + CUT_OFF
    assert await served.verify() == "[]"


async def allowed(client: LoadClient, times: int) -> None:
    """Ask so often; a request that is lost with its connection was never sent: nobody else asks."""
    for _ in range(times):
        assert (await client.insist()).allowed
    assert not client.lost


async def replaced(served: Served) -> None:
    """Kill the worker and wait for its successor."""
    pid = served.worker()
    os.kill(pid, signal.SIGKILL)

    async def answers() -> bool:
        return served.worker() not in (0, pid) and "listener" in (await readiness(served))[1]

    await eventually(answers)


async def readiness(served: Served) -> tuple[int, dict[str, Any]]:
    """The status of /readyz, and what it tells of each component."""
    async with aiohttp.ClientSession() as session, session.get(f"{served.program.ops}/readyz") as answer:
        return answer.status, (await answer.json())["components"]


async def told(served: Served) -> tuple[int, bool, float]:
    """The status of /readyz, whether it calls the journal durable, and the metric."""
    status, components = await readiness(served)
    return status, components.get("journal", {}).get("ok"), await served.metric("sidecar_journal_writable")


async def is_told(served: Served, status: int, *, durable: bool, writable: float) -> bool:
    return await told(served) == (status, durable, writable)
