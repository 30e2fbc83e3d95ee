"""`kill -9` of workers in mid-traffic: what they had counted is in the ledger, and their leases come back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.accounts import put_tenant
from tests.servers.load_client import LoadClient, Tally, Traffic, crowd, until
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent / "limits.yaml"
WORKERS = 4
KILLS = 20
CAP = 10_000


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "kills", CATALOGUE, workers=WORKERS) as running:
        yield running


class Killer:
    """Kills the worker that lived longest, again and again."""

    def __init__(self, dev: SidecarDev) -> None:
        self._dev = dev
        self._seen: list[int] = []

    async def kill(self) -> None:
        """Once at least two others are there to go on."""
        await until(lambda: len(self._living()) >= WORKERS - 1, 30)
        pid = self._living()[0]
        self._seen.remove(pid)
        os.kill(pid, signal.SIGKILL)

    def _living(self) -> list[int]:
        pids = [pid for pid in self._dev.now().pids["authz"] if Path(f"/proc/{pid}").exists()]
        self._seen = [pid for pid in self._seen if pid in pids] + [pid for pid in pids if pid not in self._seen]
        return self._seen


def journals(dev: SidecarDev) -> int:
    return len(list((dev.state / "journals").glob("*.journal")))


async def only_living_journals(dev: SidecarDev) -> None:
    """Every journal of a killed worker was adopted, is in the ledger and is gone."""
    await until(lambda: len(dev.now().pids["authz"]) == WORKERS and journals(dev) == WORKERS, 40)


@pytest.mark.slow
async def test_the_ledger_has_every_answered_allow_after_20_kills(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "large")
    killer = Killer(dev)
    async with Traffic(dev.authz_port, [tenant], clients=20) as traffic:
        for _ in range(KILLS):
            await traffic.reached(50)
            await killer.kill()
        await traffic.reached(50)
    tally = traffic.tally
    ledger = dev.ledger(tenant, "api_calls")
    assert tally.allowed <= ledger <= tally.allowed + tally.lost
    assert tally.lost > 0, "no kill hit a request"
    await only_living_journals(dev)
    assert dev.ledger(tenant, "api_calls") == ledger
    assert dev.cli_json("verify") == []


async def test_a_hard_cap_stays_exact_when_workers_are_killed(dev: SidecarDev) -> None:
    tenant = put_tenant(dev, "capped")
    killer = Killer(dev)
    tally = Tally()

    async def turn(client: LoadClient, tally: Tally) -> bool:
        answer = await client.ask()
        tally.add(answer)
        if answer is not None and answer.reason == "limit_reached":
            return False
        if answer is not None and not answer.allowed:
            await asyncio.sleep(0.2)
        return True

    async def kills() -> None:
        for allowed in (1_000, 3_000, 5_000, 7_000, 9_000):
            await until(lambda least=allowed: tally.allowed >= least, 30)  # type: ignore[misc]
            await killer.kill()

    await asyncio.gather(kills(), crowd(dev.authz_port, 40, [tenant], turn, tally))
    assert CAP - tally.lost <= tally.allowed <= CAP
    assert dev.ledger(tenant, "api_calls") == CAP
    await only_living_journals(dev)
    assert dev.cli_json("verify") == []
