"""The roles `control` and `flusher` in programs of their own: a change has usage sent by the other one first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.catalogue.load import parse
from sidecar.embedded.port import free_port
from sidecar.ledger import plans, tenants
from sidecar.ledger.connection import Ledger
from tests.servers.load_client import LoadClient
from tests.servers.program import Program
from tests.servers.stripe import Stripe
from tests.servers.subscribed import CATALOGUE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TOKEN = "token" * 8


class Apart:
    """A program with workers and the flusher, and one with the control API alone."""

    def __init__(self, folder: Path, environment: dict[str, str], ports: dict[str, int]) -> None:
        self.ports = ports
        self.dsn = environment["SIDECAR_POSTGRES_DSN"]
        self.sending = Program("sending", folder, ["--role", "authz,flusher"], environment)
        self.changing = Program("changing", folder, ["--role", "control"], environment)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.ports['control']}/api/v1/tenants/acme/{path}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, url, json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def use(self, times: int) -> None:
        """Have requests allowed, and wait until the ledger has them."""
        async with LoadClient(self.ports["authz"], "acme") as client:
            assert {(await client.decided()).status for _ in range(times)} == {200}
        connection = await asyncpg.connect(self.dsn)
        async with asyncio.timeout(30):
            while await connection.fetchval("select sum(amount) from usage_windows where tenant = 'acme'") != times:
                await asyncio.sleep(0.05)
        await connection.close()


@pytest.fixture
async def apart(database: str, redis_url: str, stripe: Stripe, tmp_path: Path) -> AsyncIterator[Apart]:
    api = StripeApi.open(stripe.key, stripe.url)
    ledger = await Ledger.open(database, connections_max=1)
    catalogue = CATALOGUE.replace("calls: {reported: true, unit: calls}", "calls: {unit: calls}")
    catalogue += "routes: [{name: all, match: /**, costs: {calls: 1}}]\n"
    async with ledger.transaction() as tx:
        await plans.apply(tx, catalogue, {}, actor="test")
        await set_up(tx, api, parse(catalogue, "test"), pause_s=0)
        await tenants.put(tx, "acme", plan="free", actor="test")
    await ledger.close()
    await api.close()
    ports = {name: free_port() for name in ("authz", "local", "control")}
    environment = {
        **{f"SIDECAR_{name.upper()}_LISTEN": f"127.0.0.1:{port}" for name, port in ports.items()},
        "SIDECAR_REDIS_URL": redis_url,
        "SIDECAR_POSTGRES_DSN": database,
        "SIDECAR_STRIPE_KEY": stripe.key,
        "SIDECAR_STRIPE_URL": stripe.url,
        # Nothing is sent of its own accord while the test runs.
        "SIDECAR_STRIPE_INTERVAL_S": "3600",
        "SIDECAR_ADMIN_TOKENS": TOKEN,
    }
    async with AsyncExitStack() as stack:
        found = Apart(tmp_path, environment, ports)
        for program in (found.sending, found.changing):
            program.start()
            stack.push_async_callback(program.stop)
            await program.ready()
        yield found


async def test_usage_is_sent_before_a_change_by_the_program_that_can_and_else_nothing_changes(
    apart: Apart, stripe: Stripe
) -> None:
    status, told = await apart.call("POST", "subscription", {"plan": "standard", "days_until_due": 30})
    assert status == 201, told
    await apart.use(8)
    status, told = await apart.call("PATCH", "subscription", {"plan": "big"})
    assert (status, told.get("plan")) == (200, "big"), told
    assert [float(total["total"]) for total in stripe.totals()] == [8], "all of it was sent before"

    await apart.sending.stop()
    assert not apart.sending.running
    status, told = await apart.call("PATCH", "subscription", {"plan": "standard"})
    assert status == 503, told
    assert "flusher" in told["detail"]
    assert (await apart.call("GET", "subscription"))[1]["plan"] == "big"
    status, told = await apart.call("PATCH", "subscription", {"plan": "standard", "force": True})
    assert (status, told.get("plan")) == (200, "standard"), told
