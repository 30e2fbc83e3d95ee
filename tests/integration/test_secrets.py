"""Secrets of a whole installation that works, is asked nonsense and loses what it needs: looked for wherever it writes.

The passwords, keys and tokens are values that exist nowhere else, so one search for each tells.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
import redis.asyncio

from sidecar.embedded import EmbeddedRedis
from sidecar.embedded.port import free_port
from sidecar.ledger import keys, plans, tenants
from sidecar.ledger.connection import Ledger
from tests.servers.program import Program
from tests.servers.stripe import Stripe
from tests.servers.subscribed import CATALOGUE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MAIN = "http://127.0.0.1"


class Canaries:
    """One value for each secret, found again by its middle part, too."""

    def __init__(self, dsn: str) -> None:
        self.stripe_key = f"sk_test_{secrets.token_hex(16)}"
        self.wrong_key = f"sk_test_{secrets.token_hex(16)}"
        self.webhook = f"whsec_{secrets.token_hex(16)}"
        self.admin = secrets.token_hex(24)
        self.wrong_admin = secrets.token_hex(24)
        self.gateway = secrets.token_hex(24)
        self.redis = secrets.token_hex(16)
        self.postgres = urlsplit(dsn).password or ""
        self.api_key = ""  # made by the program, and shown once
        self.unknown_key = secrets.token_hex(24)
        self.claim = secrets.token_hex(24)

    def found_in(self, where: str, text: str) -> list[str]:
        assert all(vars(self).values()), "a canary that is empty is found nowhere"
        return [f"{name} in {where}" for name, value in vars(self).items() if value[-16:] in text]


@pytest.fixture
def canaries(database: str) -> Canaries:
    return Canaries(database)


@pytest.fixture
def stripe(canaries: Canaries) -> Iterator[Stripe]:
    running = Stripe(canaries.stripe_key, canaries.webhook)
    running.start()
    yield running
    running.stop()


class Site:
    """The program, its servers, and everything that anybody was answered."""

    def __init__(self, program: Program, server: EmbeddedRedis, ports: dict[str, int], database: str) -> None:
        self.program, self.server, self.ports, self.database = program, server, ports, database
        self.told: list[str] = []

    async def ask(self, port: str, path: str, method: str = "GET", **more: Any) -> int:
        """One request, whose whole answer is kept."""
        url = f"{MAIN}:{self.ports[port]}{path}"
        async with aiohttp.ClientSession() as session, session.request(method, url, **more) as answer:
            self.told.append(f"{answer.status} {answer.headers} {await answer.text()}")
            return answer.status

    async def run(self, *arguments: str, **environment: str) -> int:
        """One command, whose whole output is kept."""
        before = dict(self.program._environment)
        self.program._environment.update(environment)
        status, told = await self.program.command(*arguments)
        self.program._environment = before
        self.told.append(told)
        return status

    async def rows(self) -> str:
        """Every row of every table."""
        connection = await asyncpg.connect(self.database)
        names = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
        found = [await connection.fetch(f'select * from "{one[0]}"') for one in names]  # noqa: S608 - Postgres' names
        await connection.close()
        return str(found)

    async def values(self, password: str) -> str:
        """Every value of Redis."""
        async with redis.asyncio.Redis(port=self.server.port, password=password) as client:
            return str([(name, await client.dump(name)) for name in await client.keys()])


@pytest.fixture
async def site(
    database: str,
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]],
    stripe: Stripe,
    canaries: Canaries,
    tmp_path: Path,
) -> AsyncIterator[Site]:
    server = await fresh_redis()
    async with redis.asyncio.Redis.from_url(server.url) as client:
        await client.config_set("requirepass", canaries.redis)
    ledger = await Ledger.open(database, connections_max=1)
    async with ledger.transaction() as tx:
        await plans.apply(tx, CATALOGUE, {}, actor="test")
        await tenants.put(tx, "acme", plan="free", actor="test")
        canaries.api_key = (await keys.create(tx, "acme", actor="test")).secret
    await ledger.close()
    ports = {name: free_port() for name in ("authz", "local", "control")}
    program = Program(
        "secrets",
        tmp_path,
        ["--role", "all"],
        {
            **{f"SIDECAR_{name.upper()}_LISTEN": f"127.0.0.1:{port}" for name, port in ports.items()},
            "SIDECAR_REDIS_URL": f"redis://:{canaries.redis}@127.0.0.1:{server.port}/0",
            "SIDECAR_POSTGRES_DSN": database,
            "SIDECAR_STRIPE_KEY": canaries.stripe_key,
            "SIDECAR_STRIPE_URL": stripe.url,
            "SIDECAR_STRIPE_WEBHOOK_SECRETS": canaries.webhook,
            "SIDECAR_STRIPE_INTERVAL_S": "1",
            "SIDECAR_ADMIN_TOKENS": canaries.admin,
            "SIDECAR_AUTHZ_SECRETS": canaries.gateway,
            "SIDECAR_LOG_LEVEL": "debug",
        },
    )
    ports["ops"] = int(program.ops.rpartition(":")[2])
    program.start()
    await program.ready()
    stripe.deliver_to(f"{MAIN}:{ports['control']}/webhooks/stripe")
    yield Site(program, server, ports, database)
    await program.stop()
    os.kill(server.pid, signal.SIGCONT)


async def work(site: Site, canaries: Canaries) -> None:
    """Requests, a subscription, usage and webhooks, as every day brings them."""
    admin = {"Authorization": f"Bearer {canaries.admin}"}
    gateway = {"x-quota-secret": canaries.gateway}
    assert await site.run("stripe", "setup") == 0
    assert (
        await site.ask(
            "control",
            "/api/v1/tenants/acme/subscription",
            "POST",
            json={"plan": "standard", "days_until_due": 30},
            headers=admin,
        )
        == 201
    )
    for key in (canaries.api_key, canaries.unknown_key):
        headers = {**gateway, "x-api-key": key, "authorization": f"Bearer x.{canaries.claim}.y"}
        await site.ask("authz", "/envoy/v1/things", headers=headers)
    for path in ("/api/v1/tenants/acme", "/api/v1/tenants/acme/keys", "/api/v1/tenants/acme/invoice/upcoming"):
        await site.ask("control", path, headers=admin)
    assert await site.run("flush") == 0
    await site.run("verify", "--json")
    await site.run("stripe", "reconcile", "--json")
    await site.run("stripe", "events", "--json")


async def nonsense(site: Site, canaries: Canaries) -> None:
    """Wrong credentials, and right ones where they do not belong."""
    assert (
        await site.ask("control", "/api/v1/tenants/acme", headers={"Authorization": f"Bearer {canaries.wrong_admin}"})
        == 401
    )
    await site.ask("authz", "/envoy/v1/things", headers={"x-quota-secret": canaries.wrong_admin})
    for header in ("", "t=1,v1=00", f"t=1,v1={canaries.webhook}"):
        body = f'{{"id": "{canaries.stripe_key}"}}'
        status = await site.ask("control", "/webhooks/stripe", "POST", data=body, headers={"Stripe-Signature": header})
        assert status == 400
    await site.ask(
        "control",
        "/api/v1/tenants/acme",
        "PUT",
        json={"plan": 1},
        headers={"Authorization": f"Bearer {canaries.admin}"},
    )
    elsewhere = free_port()
    wrong = [
        (("stripe", "setup"), "SIDECAR_STRIPE_KEY", canaries.wrong_key),
        (("stripe", "setup"), "SIDECAR_STRIPE_KEY", f"{canaries.stripe_key}\u00e9 "),
        (("stripe", "setup"), "SIDECAR_STRIPE_URL", f"ftp://{canaries.wrong_key}@nowhere"),
        (
            ("verify",),
            "SIDECAR_POSTGRES_DSN",
            f"postgresql://sidecar:{canaries.postgres}@127.0.0.1:{elsewhere}/nowhere",
        ),
        (("verify",), "SIDECAR_POSTGRES_DSN", f"postgresql://sidecar:{canaries.postgres}@[::1/x"),
        (("verify",), "SIDECAR_REDIS_URL", f"redis://:{canaries.redis}@127.0.0.1:{elsewhere}/0"),
        (("verify",), "SIDECAR_REDIS_URL", f"redis://:{canaries.redis}@[::1"),
        (("serve", "--role", "all"), "SIDECAR_ADMIN_TOKENS", canaries.admin[:12]),
    ]
    for command, name, value in wrong:
        assert await site.run(*command, **{name: value}), f"{command} with a wrong {name}"


async def losses(site: Site, canaries: Canaries, stripe: Stripe) -> None:
    """Stripe fails in every way, then is another account's; Redis takes the password no more, then hangs."""
    admin = {"Authorization": f"Bearer {canaries.admin}"}
    for kind in ("rate_limited", "error_before", "error_after", "cut_before", "cut_after"):
        stripe.faults({"kind": kind, "path": "", "count": 2})
        await site.ask("control", "/api/v1/tenants/acme/subscription", "PATCH", json={"plan": "big"}, headers=admin)
    stripe.faults()
    stripe.accept(canaries.wrong_key)
    await site.ask("control", "/api/v1/tenants/acme/payment-method", headers=admin)
    await site.ask("control", "/api/v1/tenants/acme/subscription", "PATCH", json={"plan": "standard"}, headers=admin)
    async with redis.asyncio.Redis(port=site.server.port, password=canaries.redis) as client:
        await client.config_set("requirepass", "another password")
        await client.client_kill_filter(_type="normal", skipme=True)
    await site.run("flush")
    await site.ask("ops", "/readyz")
    await site.ask("ops", "/metrics")
    async with redis.asyncio.Redis(port=site.server.port, password="another password") as client:
        await client.config_set("requirepass", canaries.redis)


async def test_no_secret_is_in_a_log_an_answer_a_metric_the_ledger_or_redis(
    site: Site, canaries: Canaries, stripe: Stripe
) -> None:
    await work(site, canaries)
    await nonsense(site, canaries)
    await losses(site, canaries, stripe)
    for path in ("/healthz", "/readyz", "/metrics"):
        assert await site.ask("ops", path)
    found = canaries.found_in("rows", await site.rows())
    found += canaries.found_in("Redis", await site.values(canaries.redis))
    await site.program.stop()
    log = await asyncio.to_thread(site.program._log.read_text)
    assert "webhook" in log
    found += canaries.found_in("log", log)
    for told in site.told:
        found += canaries.found_in(f"what was told: {told[:200]}", told)
    assert found == []
