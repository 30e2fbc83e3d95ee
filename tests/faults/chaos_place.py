"""The installation of a chaos run: two edges (Envoy and a sidecar each), two flushers and a control program.

They stand on a Redis with a replica, Postgres and the Stripe stand-in, which they reach through proxies; so does Envoy
its sidecar.

Guarantees: everything is on free ports and below one folder; stop() leaves no process and no mount behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
from aiohttp import web
from msgspec import Struct

from sidecar.billing import customers
from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing, Wish
from sidecar.catalogue.load import parse
from sidecar.clock import Clock
from sidecar.control.catalogues import Catalogues
from sidecar.embedded import EmbeddedPostgres
from sidecar.ledger import keys, plans, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.migrate import migrate
from tests.e2e.gateways import free_port
from tests.faults.chaos_checks import CheckProxy
from tests.faults.chaos_envoy import EdgeEnvoy
from tests.faults.chaos_redis import RedisPair
from tests.servers.program import Program
from tests.servers.stripe import Stripe
from tests.servers.tcp_proxy import TcpProxy

CATALOGUE = Path(__file__).parent / "chaos.yaml"
ADMIN_TOKEN = "0123456789abcdef0123456789abcdef"
EDGES = ("edge-1", "edge-2")
FLUSHERS = ("flusher-1", "flusher-2")
CONTROL = "control"
WORKERS = {"edge-1": 2, "edge-2": 1}
LEASE_TTL_MS = 1_500
RECLAIM_AFTER_MS = 4_000
LEASE_REST_MS = 6_000
KEEP_S = 0.3
COMMON = {
    "SIDECAR_LEASE_TTL_MS": str(LEASE_TTL_MS),
    "SIDECAR_RECLAIM_AFTER_MS": str(RECLAIM_AFTER_MS),
    "SIDECAR_LEASE_REST_MS": str(LEASE_REST_MS),
    "SIDECAR_SYNC_INTERVAL_MS": "250",
    "SIDECAR_FLUSH_INTERVAL_MS": "300",
    "SIDECAR_STRIPE_INTERVAL_S": "3",
    "SIDECAR_STRIPE_RECONCILE_INTERVAL_S": "60",
    "SIDECAR_ADMIN_TOKENS": ADMIN_TOKEN,
    "PYTHONUNBUFFERED": "1",
}


class Client(Struct):
    """A tenant of the run, its API key, and its cap in force; None for one that is billed without a cap."""

    tenant: str
    key: str
    cap: int | None
    edges: tuple[str, ...] = EDGES


class Place:
    """Everything that runs, by name. ``problems``: what a fault found that must not be."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.redis = RedisPair(folder)
        self.postgres = EmbeddedPostgres(folder / "postgres", durable=False)
        self.stripe = Stripe()
        self.stripe_proxy = TcpProxy(0)
        self.redis_proxies = {name: TcpProxy(0) for name in (*EDGES, *FLUSHERS, CONTROL)}
        self.postgres_proxies = {name: TcpProxy(0) for name in (*FLUSHERS, CONTROL)}
        self.programs: dict[str, Program] = {}
        self.envoys: dict[str, EdgeEnvoy] = {}
        self.checks: list[CheckProxy] = []  # one an edge
        self.control_url = ""
        self.problems: list[str] = []
        self._tell = tell
        self._stack = AsyncExitStack()
        self._keeping: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        stack = self._stack
        stack.push_async_callback(self.redis.stop)
        stack.push_async_callback(self.postgres.stop)
        await asyncio.gather(self.redis.start(), self.postgres.start())
        self.stripe.start()
        stack.callback(self.stripe.stop)
        await migrate(self.postgres.dsn)
        for proxies, port in (
            (self.redis_proxies, self.redis.primary.port),
            (self.postgres_proxies, self.postgres.port),
        ):
            for proxy in proxies.values():
                proxy.target_port = port
                await stack.enter_async_context(proxy)
        self.stripe_proxy.target_port = int(self.stripe.url.rpartition(":")[2])
        await stack.enter_async_context(self.stripe_proxy)
        application_port = await self._application()
        for name in EDGES:
            await self._edge(name, application_port)
        for name in FLUSHERS:
            self._program(name, ["--role", "flusher"], self._office(name))
        self.control_url = f"http://127.0.0.1:{free_port()}"
        listen = {"SIDECAR_CONTROL_LISTEN": self.control_url.removeprefix("http://")}
        self._program(CONTROL, ["--role", "control"], {**self._office(CONTROL), **listen})
        self.stripe.deliver_to(f"{self.control_url}/webhooks/stripe")
        await self._offer()

    async def run_programs(self) -> None:
        """Start them and wait until all are ready; from then on each that ends is started again."""
        for program in self.programs.values():
            program.start()
        await asyncio.gather(*(program.ready() for program in self.programs.values()))
        self._keeping = [asyncio.create_task(self._keep(program)) for program in self.programs.values()]

    async def stop(self) -> None:
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await asyncio.gather(*(self.programs[name].stop() for name in EDGES if name in self.programs))
        await asyncio.gather(*(program.stop() for program in self.programs.values()))
        await self._stack.aclose()

    async def restart_office(self) -> None:
        """Stop both flushers and the control program kindly and start them again."""
        names = (*FLUSHERS, CONTROL)
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await asyncio.gather(*(self.programs[name].stop() for name in names))
        await self.sql("update stripe_lanes set claim = null, claimed_until = null where claimed_until is not null")
        for name in names:
            self.programs[name].start()
        await asyncio.gather(*(self.programs[name].ready() for name in names))
        self._keeping = [asyncio.create_task(self._keep(program)) for program in self.programs.values()]

    async def sql(self, text: str, *arguments: Any) -> list[Any]:
        """Ask Postgres itself, past every proxy."""
        connection = await asyncpg.connect(self.postgres.dsn, timeout=20)
        try:
            return list(await connection.fetch(text, *arguments))
        finally:
            await connection.close()

    async def clients(self, billed: int, caps: list[int]) -> list[Client]:
        """Tenants with keys and customers at Stripe; those without a cap have a subscription, too."""
        found: list[Client] = []
        async with AsyncExitStack() as stack:
            ledger = await Ledger.open(self.postgres.dsn, connections_max=4)
            stack.push_async_callback(ledger.close)
            api = StripeApi.open(self.stripe.key, self.stripe.url)
            stack.push_async_callback(api.close)
            subscribing = Subscribing(Mirror(ledger, api, Catalogues().in_force, Clock()), _nothing_to_send, "none")
            for number in range(billed):
                edges = (EDGES, EDGES[:1], EDGES[1:])[number % 3]
                client = await self._client(ledger, f"billed-{number}", None, edges)
                await subscribing.subscribe(
                    client.tenant, Wish(plan="billed", trial_days=0, days_until_due=30), actor="chaos"
                )
                found.append(client)
            for number, cap in enumerate(caps):
                client = await self._client(ledger, f"capped-{number}", cap, EDGES)
                async with customers.one_change(ledger, client.tenant):
                    await customers.create(ledger, api, client.tenant, actor="chaos")
                found.append(client)
        return found

    async def _client(self, ledger: Ledger, tenant: str, cap: int | None, edges: tuple[str, ...]) -> Client:
        plan = "billed" if cap is None else f"capped_{cap}"
        async with ledger.transaction() as tx:
            await tenants.put(tx, tenant, plan=plan, actor="chaos")
            key = await keys.create(tx, tenant, actor="chaos")
        return Client(tenant, key.secret, cap, edges)

    async def _offer(self) -> None:
        """Put the catalogue in force and offer it at Stripe."""
        text = CATALOGUE.read_text()
        ledger = await Ledger.open(self.postgres.dsn, connections_max=2)
        api = StripeApi.open(self.stripe.key, self.stripe.url)
        try:
            async with ledger.transaction() as tx:
                await plans.apply(tx, text, {}, actor="chaos")
                await set_up(tx, api, parse(text, CATALOGUE.name), pause_s=0)
        finally:
            await api.close()
            await ledger.close()

    async def _edge(self, name: str, application_port: int) -> None:
        port = free_port()
        listen = {
            "SIDECAR_AUTHZ_LISTEN": f"127.0.0.1:{port}",
            "SIDECAR_LOCAL_LISTEN": f"127.0.0.1:{free_port()}",
            "SIDECAR_REDIS_URL": self.redis.url(self.redis_proxies[name].port),
        }
        self._program(name, ["--role", "authz", "--workers", str(WORKERS[name])], {**COMMON, **listen})
        folder = self.folder / f"{name}-envoy"
        folder.mkdir()
        checks = CheckProxy(port, self.programs[name].children)
        self.checks.append(checks)
        await self._stack.enter_async_context(checks)
        envoy = self.envoys[name] = EdgeEnvoy(folder, authz_port=checks.port, upstream_port=application_port)
        envoy.start()
        self._stack.callback(envoy.end)
        await envoy.accepting()

    def _office(self, name: str) -> dict[str, str]:
        """Settings of a program that has the ledger and Stripe."""
        port = self.postgres_proxies[name].port
        return {
            **COMMON,
            "SIDECAR_REDIS_URL": self.redis.url(self.redis_proxies[name].port),
            "SIDECAR_POSTGRES_DSN": self.postgres.dsn.replace(f":{self.postgres.port}/", f":{port}/"),
            "SIDECAR_STRIPE_KEY": self.stripe.key,
            "SIDECAR_STRIPE_URL": f"http://127.0.0.1:{self.stripe_proxy.port}",
            "SIDECAR_STRIPE_WEBHOOK_SECRETS": self.stripe.webhook_secret,
        }

    def _program(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        program = self.programs[name] = Program(name, self.folder, arguments, environment)
        if name in EDGES:
            program.disk.attach()
            self._stack.callback(program.disk.detach)

    async def _keep(self, program: Program) -> None:
        while True:
            if not program.running:
                self._tell(f"{program.name} ended and is started again")
                program.start()
            await asyncio.sleep(KEEP_S)

    async def _application(self) -> int:
        """What the gateway protects: answers everything with the same."""

        async def answer(request: web.BaseRequest) -> web.Response:
            return web.Response(text="served")

        runner = web.ServerRunner(web.Server(answer, access_log=None))
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])


async def _nothing_to_send(_tenant: str, /) -> int:
    """What a new subscription replaces was never billed."""
    return 0


def unless_gone(act: Callable[[], None]) -> None:
    """Do something to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        act()
