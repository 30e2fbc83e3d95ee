"""Whoever changes something is in the audit log with what was changed, and no secret is.

Both ways in are walked as they are: a route or command that is new has to be put into one of the lists below.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner

from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing
from sidecar.catalogue.load import parse
from sidecar.cli import main
from sidecar.clock import Clock
from sidecar.control.api import control_app
from sidecar.control.billing import Desk
from sidecar.control.catalogues import Catalogues
from sidecar.ledger import audit
from sidecar.ledger.audit import AuditEntry
from sidecar.ledger.connection import Ledger
from tests.servers.forwarding import Forwarding
from tests.servers.stripe import KEY, Stripe
from tests.servers.subscribed import CATALOGUE

TOKEN, OTHER = (f"token-{secrets.token_hex(12)}" for _ in range(2))
TENANT = "/api/v1/tenants/{tenant}"
BACK = {"success_url": "https://example.com/yes", "cancel_url": "https://example.com/no"}
Change = tuple[str, str, object, str]
# In an order in which each is possible: method, path, body, and the action that is noted.
CHANGES: list[Change] = [
    ("PUT", "/api/v1/catalogue", CATALOGUE, "catalogue.apply"),
    ("PUT", TENANT, {"plan": "free"}, "tenant.create"),
    ("PUT", TENANT, {"plan": "free", "shadow": True}, "tenant.put"),
    ("POST", f"{TENANT}/keys", {"name": "ci"}, "key.create"),
    ("POST", f"{TENANT}/customer", {}, "billing.customer"),
    ("POST", f"{TENANT}/checkout", {"plan": "standard", **BACK}, "billing.checkout"),
    ("POST", f"{TENANT}/subscription", {"plan": "standard", "days_until_due": 30}, "billing.subscribe"),
    ("PATCH", f"{TENANT}/subscription", {"plan": "big"}, "billing.change"),
    ("DELETE", f"{TENANT}/subscription", None, "billing.cancel"),
]  # fmt: skip
# A page at Stripe; and what Stripe says, which is noted by what comes of it (tests/integration/test_webhooks.py).
CHANGE_NOTHING = {("POST", f"{TENANT}/portal"), ("POST", "/webhooks/stripe")}


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, shards=1)
    yield opened
    await opened.close()


async def entries(ledger: Ledger, after: int = 0) -> list[AuditEntry]:
    async with ledger.transaction() as tx:
        return [entry for entry in await audit.read(tx) if entry.id > after]


async def nothing_left(_: str, /) -> int:
    return 0


async def test_every_change_through_the_billing_api_is_noted_with_the_token_that_asked(
    ledger: Ledger, stripe: Stripe
) -> None:
    api = StripeApi.open(KEY, stripe.url, timeout_s=5)
    mirror = Mirror(ledger, api, Catalogues().in_force, Clock())
    desk = Desk(mirror, Subscribing(mirror, nothing_left, "create_prorations"))
    app = control_app(ledger, (OTHER, TOKEN), Clock(), desk=desk)
    walked = {
        (route.method, str(route.resource.canonical))
        for route in app.router.routes()
        if route.method not in ("GET", "HEAD") and route.resource is not None
    }
    assert walked == {(method, path) for method, path, *_ in CHANGES} | CHANGE_NOTHING
    made_secrets = [TOKEN, OTHER]
    async with TestClient(TestServer(app)) as client:
        for number, (method, path, body, action) in enumerate(CHANGES):
            if method == "POST" and path.endswith("/customer"):
                async with ledger.transaction() as tx:
                    await set_up(tx, api, parse(CATALOGUE, "test"))
            before = max((entry.id for entry in await entries(ledger)), default=0)
            token = (TOKEN, OTHER)[number % 2]
            data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
            headers = {"authorization": f"Bearer {token}"}
            async with client.request(method, path.format(tenant="acme"), data=data, headers=headers) as answer:
                said = await answer.json(content_type=None)
                assert answer.status < 300, said
            made_secrets += [said["key"]] if action == "key.create" else []
            found = [entry for entry in await entries(ledger, before) if entry.action == action]
            assert found, f"{method} {path} left {[entry.action for entry in await entries(ledger, before)]}"
            assert {entry.actor for entry in found} == {f"api:{hashlib.sha256(token.encode()).hexdigest()[:8]}"}
            assert [entry.tenant for entry in found] == ["" if path.endswith("catalogue") else "acme"]
            assert found[0].detail
    await api.close()
    written = repr(await entries(ledger))
    assert [secret for secret in made_secrets if secret in written] == []


# What each command that changes something leaves, in an order in which each is possible.
COMMANDS: dict[str, tuple[str, str]] = {
    "migrate": ("", "ledger.migrate"),
    "catalogue apply": ("{catalogue}", "catalogue.apply"),
    "tenant put": ("acme --plan free", "tenant.create"),
    "tenant suspend": ("acme --reason unpaid", "tenant.status"),
    "tenant activate": ("acme", "tenant.status"),
    "tenant override": ("acme limits.calls.included 5", "tenant.override"),
    "key create": ("acme", "key.create"),
    "key revoke": ("{key}", "key.revoke"),
    "stripe setup": ("", "stripe.setup"),
    "stripe import": ("--mapping {mapping}", "billing.customer"),
    "stripe replay": ("evt_dead", "webhook.replay"),
}
# Commands about usage that Stripe lacks, for which some has to be counted first.
ABOUT_USAGE = {"stripe reconcile", "stripe retry"}
READ_ONLY = {
    "check", "dev", "serve", "flush", "verify", "usage", "price", "journal inspect",
    "catalogue show", "catalogue diff", "tenant show", "tenant list", "key list", "stripe events", "stripe parked",
}  # fmt: skip


def leaves(group: click.Group, before: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        path = f"{before} {name}".strip()
        if isinstance(command, click.Group):
            yield from leaves(command, path)
        else:
            yield path


def test_every_command_says_whether_it_changes_something() -> None:
    assert set(leaves(main)) == set(COMMANDS) | ABOUT_USAGE | READ_ONLY


async def test_every_change_by_a_command_is_noted_with_the_user_who_ran_it(
    empty_database: str, stripe: Stripe, tmp_path: Path
) -> None:
    (tmp_path / "catalogue.yaml").write_text(CATALOGUE)
    environment = {
        "SIDECAR_STATE_DIR": str(tmp_path / "state"),
        "SIDECAR_POSTGRES_DSN": empty_database,
        "SIDECAR_STRIPE_KEY": KEY,
        "SIDECAR_STRIPE_URL": stripe.url,
        "SIDECAR_SHARDS": "1",
    }
    places = {"catalogue": str(tmp_path / "catalogue.yaml"), "mapping": str(tmp_path / "mapping.csv"), "key": ""}
    ledger = await Ledger.open(empty_database, shards=1)
    api = StripeApi.open(KEY, stripe.url, timeout_s=5)
    newest = 0
    for command, (words, action) in COMMANDS.items():
        if command == "stripe import":
            customer = await api.v1.customers.create_async({"name": "Acme"})
            (tmp_path / "mapping.csv").write_text(f"{customer.id},acme\n")
        if command == "stripe replay":
            async with ledger.transaction() as tx:
                await tx._connection.execute(
                    "insert into webhook_events (id, kind, object, state) values ('evt_dead', 'x', 'y', 'dead')"
                )
        done = await asyncio.to_thread(
            CliRunner().invoke, main, [*command.split(), *words.format(**places).split()], env=environment
        )
        assert done.exit_code == 0, f"{command}: {done.output} {done.exception}"
        if command == "key create":
            places["key"] = done.output.split()[0]
        found = [entry for entry in await entries(ledger, newest) if entry.action == action]
        assert found, f"{command} left {[entry.action for entry in await entries(ledger, newest)]}"
        assert {entry.actor.partition(":")[0] for entry in found} == {"cli"}
        assert found[0].detail
        newest = max(entry.id for entry in await entries(ledger))
    written = repr(await entries(ledger))
    assert [secret for secret in (places["key"], KEY) if secret in written] == []
    await api.close()
    await ledger.close()


async def test_usage_that_a_command_sends_again_is_noted_with_the_user_who_ran_it(
    place: Forwarding, database: str, tmp_path: Path
) -> None:
    environment = {
        "SIDECAR_STATE_DIR": str(tmp_path / "state"),
        "SIDECAR_POSTGRES_DSN": database,
        "SIDECAR_STRIPE_KEY": KEY,
        "SIDECAR_STRIPE_URL": place.stripe.url,
    }

    async def noted(command: str, action: str) -> AuditEntry:
        newest = max(entry.id for entry in await entries(place.ledger))
        done = await asyncio.to_thread(CliRunner().invoke, main, command.split(), env=environment)
        assert done.exit_code == 0, f"{command}: {done.output} {done.exception}"
        [found] = await entries(place.ledger, newest)
        assert (found.action, found.actor.partition(":")[0]) == (action, "cli")
        assert KEY not in repr(found)
        return found

    async def set_aside() -> str:
        await place.sql("update stripe_outbox set state = 'parked', delivered = null, reason = 'no such customer'")
        [row] = await place.rows()
        return str(row["identifier"])

    await place.tenants(["acme"])
    await place.count("acme", 7)
    place.stripe.faults({"kind": "async_error", "count": 1})
    await place.forwarder().flush()
    identifier = await set_aside()
    assert (await noted(f"stripe retry {identifier} --sure", "stripe.retry")).detail["identifier"] == identifier
    await set_aside()
    assert (await noted("stripe retry --all --sure", "stripe.retry_all")).detail
    await place.forwarder().flush()
    await place.agree()
    await place.count("acme", 5)
    await place.sql("update shards set touched_from = null")  # as if the outbox had overlooked it
    repaired = await noted("stripe reconcile --repair", "stripe.repair")
    assert (repaired.tenant, repaired.detail["kind"]) == ("acme", "decided_again")
    await place.forwarder().flush()
    await place.agree()


async def test_nobody_who_asks_for_nothing_is_noted(ledger: Ledger) -> None:
    """A change that is refused, or changes nothing, leaves no entry."""
    async with TestClient(TestServer(control_app(ledger, (TOKEN,), Clock()))) as client:
        before: Any = await entries(ledger)
        for token in (TOKEN, "wrong"):
            headers = {"authorization": f"Bearer {token}"}
            async with client.put("/api/v1/tenants/acme", json={"plan": "none"}, headers=headers) as answer:
                assert answer.status >= 400
        assert await entries(ledger) == before
