"""Stopped kindly or killed in mid-traffic, `sidecar dev` leaves nobody behind and goes on where it was."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Self

import pytest

from tests.servers.accounts import create_key, put_tenant
from tests.servers.load_client import LoadClient, Tally, until
from tests.servers.processes import alive, everybody
from tests.servers.sidecar_dev import SidecarDev

pytestmark = pytest.mark.timeout(120)

CATALOGUE = Path(__file__).parent.parent / "faults" / "limits.yaml"
CAP = 4_000
CLIENTS = 20


class Customers:
    """Clients of one tenant that outlive the gateway they ask, until the cap is spent."""

    def __init__(self, dev: SidecarDev, tenant: str, clients: int = CLIENTS) -> None:
        self.tally = Tally()
        self.over = 0
        self._clients = [LoadClient(dev.authz_port, tenant) for _ in range(clients)]
        self._tasks: list[asyncio.Task[None]] = []

    async def _run(self, client: LoadClient) -> None:
        while True:
            try:
                answer = await client.ask()
            except OSError:
                continue  # nobody listens at the moment
            self.tally.add(answer)
            if answer is not None and answer.reason == "limit_reached":
                self.over += 1
                return
            if answer is not None and not answer.allowed:
                await asyncio.sleep(0.1)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run(client)) for client in self._clients]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()

    async def reached(self, allowed: int) -> None:
        await until(lambda: self.tally.allowed >= allowed, 40)

    async def served(self) -> None:
        """All of them were told that the cap is spent."""
        await until(lambda: self.over == len(self._clients), 40)


@pytest.mark.slow
async def test_a_hard_cap_and_the_ledger_stay_exact_over_a_stop_and_a_kill(servers_directory: Path) -> None:
    state = servers_directory / "goes-on"
    dev = SidecarDev(state, CATALOGUE, workers=2)
    dev.start()
    try:
        tenant = put_tenant(dev, "capped_for_life")
        key = create_key(dev, tenant)
        async with Customers(dev, tenant) as customers:
            await customers.reached(1_000)
            # Ctrl-C in mid-traffic: nobody is left, and the journals are in the ledger.
            everyone = everybody(dev.pid)
            assert await asyncio.to_thread(dev.stop) == 0
            assert not [pid for pid in everyone if alive(pid)]
            assert not list(state.rglob("*.journal"))
            await asyncio.to_thread(dev.start)

            await customers.reached(2_000)
            # kill -9: everybody goes with it, and the next start adopts the journals.
            everyone = everybody(dev.pid)
            await asyncio.to_thread(dev.stop, signal.SIGKILL)
            await until(lambda: not [pid for pid in everyone if alive(pid)], 20)
            assert list(state.rglob("*.journal"))
            await asyncio.to_thread(dev.start)
            await customers.served()
        tally = customers.tally
        # A stop in order answers all that it counted; only what was in flight at the kill may be counted unanswered.
        assert CAP - CLIENTS <= tally.allowed <= CAP
        assert dev.ledger(tenant, "api_calls") == CAP
        async with LoadClient(dev.authz_port, headers={"x-api-key": key}) as client:
            assert (await client.decided()).reason == "limit_reached"
        await until(lambda: len(list((state / "journals").glob("*.journal"))) == 2, 20)
        assert dev.cli_json("verify") == []
    finally:
        dev.stop()
