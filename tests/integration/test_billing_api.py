"""The billing API over HTTP, and the commands about events."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing
from sidecar.billing.webhooks import webhooks
from sidecar.catalogue.load import parse
from sidecar.clock import Clock
from sidecar.control.api import control_app
from sidecar.control.billing import Desk
from sidecar.control.catalogues import Catalogues
from sidecar.ledger import plans, tenants
from sidecar.ledger.connection import Ledger
from tests.servers.stripe import KEY, Stripe

TOKEN = "admin-token-of-this-test"
CATALOGUE = """
identity: [{header: x-tenant-id}]
metrics: {calls: {reported: true}}
plans:
  free: {limits: {calls: 10}}
  standard: {price: 99, limits: {calls: {included: 100, overage: 0.01}}}
  big: {price: 499, limits: {calls: {included: 1000, overage: 0.005}}}
"""
Call = Callable[..., Awaitable[tuple[int, Any]]]
HeadersOf = Callable[[str, str, object], Awaitable[tuple[int, Mapping[str, str], Any]]]


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, connections_max=6)
    async with opened.transaction() as tx:
        await plans.apply(tx, CATALOGUE, {}, actor="test")
        await tenants.put(tx, "acme", plan="free", actor="test")
    yield opened
    await opened.close()


@pytest.fixture
async def stripe() -> AsyncIterator[Stripe]:
    standin = Stripe()
    await asyncio.to_thread(standin.start)
    yield standin
    await asyncio.to_thread(standin.stop)


@pytest.fixture
async def api(stripe: Stripe) -> AsyncIterator[StripeApi]:
    opened = StripeApi.open(KEY, stripe.url, timeout_s=5)
    yield opened
    await opened.close()


def caller(client: TestClient[Any, Any]) -> Call:
    async def call(method: str, path: str, body: object = None, tenant: str = "acme") -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {TOKEN}"}
        data = None if body is None else json.dumps(body).encode()
        async with client.request(method, f"/api/v1/tenants/{tenant}/{path}", data=data, headers=headers) as answer:
            wanted = "application/json" if answer.status < 400 else "application/problem+json"
            assert answer.content_type == wanted
            return answer.status, await answer.json(content_type=None)

    return call


@pytest.fixture
async def client(ledger: Ledger, api: StripeApi) -> AsyncIterator[TestClient[Any, Any]]:
    async with ledger.transaction() as tx:
        await set_up(tx, api, parse(CATALOGUE, "test"))
    mirror = Mirror(ledger, api, Catalogues().in_force, Clock())

    async def nothing_left(_: str, /) -> int:
        return 0

    desk = Desk(mirror, Subscribing(mirror, nothing_left, "create_prorations"))
    async with TestClient(TestServer(control_app(ledger, (TOKEN,), Clock(), desk=desk))) as client:
        yield client


@pytest.fixture
def call(client: TestClient[Any, Any]) -> Call:
    return caller(client)


@pytest.fixture
def headers_of(client: TestClient[Any, Any]) -> HeadersOf:
    async def call(method: str, path: str, body: object) -> tuple[int, Mapping[str, str], Any]:
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with client.request(method, f"/api/v1/tenants/acme/{path}", json=body, headers=headers) as answer:
            return answer.status, answer.headers, await answer.json(content_type=None)

    return call


async def test_a_tenant_is_billed_from_its_customer_to_its_cancellation(call: Call, api: StripeApi) -> None:
    assert (await call("GET", "customer"))[0] == 404
    status, customer = await call("POST", "customer", {"email": "billing@acme.test", "name": "Acme"})
    assert (status, customer["tenant"]) == (200, "acme")
    assert await call("POST", "customer", {}) == (200, customer)
    assert await call("GET", "customer") == (200, customer)
    assert await call("GET", "payment-method") == (200, {"payment_method": None})
    method = await api.v1.payment_methods.attach_async("pm_card_mastercard", {"customer": customer["customer"]})
    _, found = await call("GET", "payment-method")
    assert found["payment_method"] == {
        "type": "card",
        "brand": "mastercard",
        "last4": "4444",
        "exp_month": 12,
        "exp_year": 2034,
    }
    await api.v1.customers.update_async(
        customer["customer"], {"invoice_settings": {"default_payment_method": method.id}}
    )

    assert (await call("GET", "subscription"))[0] == 404
    status, made = await call("POST", "subscription", {"plan": "standard"})
    assert status == 201
    assert (made["plan"], made["status"], made["now"]) == (
        "standard",
        "active",
        {"plan": "standard", "status": "active", "status_until_s": 0},
    )
    assert await call("GET", "subscription") == (200, made)
    status, problem = await call("POST", "subscription", {"plan": "big"})
    assert (status, problem["title"]) == (409, "conflict")

    _, later = await call("PATCH", "subscription", {"plan": "big", "when": "period_end"})
    assert (later["plan"], later["next_plan"]) == ("standard", "big")
    _, kept = await call("PATCH", "subscription", {"keep": True})
    assert kept["next_plan"] == ""
    _, changed = await call("PATCH", "subscription", {"plan": "big", "proration": "none"})
    assert changed["now"]["plan"] == "big"
    _, history = await call("GET", "plan-changes")
    assert [one["to_plan"] for one in history["plan_changes"]] == ["big", "standard"]

    _, ending = await call("DELETE", "subscription")
    assert ending["cancel_at_period_end"] is True
    _, ended = await call("DELETE", "subscription?when=now&proration=none&force=true")
    assert (ended["status"], ended["now"]["status"]) == ("canceled", "cancelled")


async def test_checkout_and_portal_are_pages_at_stripe(call: Call) -> None:
    urls = {"success_url": "https://app.test/ok", "cancel_url": "https://app.test/no"}
    status, page = await call("POST", "checkout", {"plan": "standard", **urls})
    assert status == 201
    assert page["url"].startswith("https://")
    status, page = await call("POST", "portal", {"return_url": "https://app.test/"})
    assert status == 201
    assert page["url"].startswith("https://")


async def test_invoices_are_stored_copies_with_lines_and_links(
    call: Call, ledger: Ledger, api: StripeApi, stripe: Stripe
) -> None:
    assert await call("GET", "invoices") == (200, {"invoices": [], "more": False})
    await call("POST", "customer", {})
    await call("POST", "subscription", {"plan": "standard", "days_until_due": 14})
    mirror = Mirror(ledger, api, Catalogues().in_force, Clock())
    page = await api.v1.invoices.list_async({})
    for invoice in page.data:
        await mirror.invoice(str(invoice.id))
    await asyncio.to_thread(stripe.stop)
    _, found = await call("GET", "invoices?status=open&limit=5")
    (invoice,) = found["invoices"]
    assert (invoice["total"], invoice["currency"], invoice["amount_remaining"]) == (9900, "usd", 9900)
    assert invoice["hosted_url"]
    assert invoice["pdf_url"]
    assert invoice["lines"][0]["amount"] == 9900
    assert await call("GET", "invoices?status=paid") == (200, {"invoices": [], "more": False})
    assert await call("GET", f"invoices?before={invoice['id']}") == (200, {"invoices": [], "more": False})


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "subscription", {"plan": "none"}, 404),
        ("POST", "subscription", {"plan": "standard", "price": 1}, 400),
        ("POST", "subscription", {}, 400),
        ("PATCH", "subscription", {}, 409),
        ("PATCH", "subscription", {"plan": "big", "keep": True}, 409),
        ("PATCH", "subscription", {"plan": "big", "when": "soon"}, 400),
        ("PATCH", "subscription", {"plan": "big"}, 404),
        ("DELETE", "subscription", None, 404),
        ("DELETE", "subscription?when=soon", None, 400),
        ("GET", "invoices?status=lost", None, 400),
        ("GET", "invoices?limit=x", None, 400),
        ("POST", "customer", {"customer": "cus_nobody"}, 404),
        ("POST", "portal", {}, 404),
        ("POST", "checkout", {"plan": "standard"}, 400),
    ],
)
async def test_what_cannot_be_done_says_why(call: Call, method: str, path: str, body: object, expected: int) -> None:
    status, problem = await call(method, path, body)
    assert status == expected
    assert problem["detail"]


async def test_a_tenant_that_is_not_there_is_404_everywhere(call: Call) -> None:
    for method, path, body in (
        ("GET", "customer", None),
        ("POST", "customer", {}),
        ("GET", "subscription", None),
        ("POST", "subscription", {"plan": "standard"}),
        ("GET", "invoices", None),
        ("GET", "plan-changes", None),
    ):
        assert (await call(method, path, body, tenant="nobody"))[0] == 404


async def test_while_stripe_is_away_changes_are_503_and_lists_still_answer(call: Call, stripe: Stripe) -> None:
    await call("POST", "customer", {})
    await asyncio.to_thread(stripe.stop)
    status, problem = await call("POST", "subscription", {"plan": "standard"})
    assert (status, problem["title"]) == (503, "Stripe is away")
    assert (await call("GET", "customer"))[0] == 200
    assert (await call("GET", "invoices"))[0] == 200


async def test_a_change_whose_fate_is_unknown_asks_to_look_first_and_not_to_come_back_by_itself(
    call: Call, headers_of: HeadersOf, stripe: Stripe
) -> None:
    await call("POST", "customer", {})
    rule = {"path": "/v1/subscriptions", "method": "POST", "kind": "error_after", "count": 1}
    await asyncio.to_thread(stripe.faults, rule)
    status, headers, problem = await headers_of("POST", "subscription", {"plan": "standard", "days_until_due": 14})
    assert (status, problem["title"]) == (503, "Stripe is away")
    assert "look at GET .../subscription" in problem["detail"]
    assert "retry-after" not in headers
    # Nothing was done, or only looked at: come back.
    await asyncio.to_thread(stripe.faults, {"kind": "rate_limited", "method": "POST", "count": 1})
    status, headers, _ = await headers_of("POST", "portal", {})
    assert (status, "retry-after" in headers) == (503, True)
    await asyncio.to_thread(stripe.stop)
    status, headers, _ = await headers_of("GET", "payment-method", None)
    assert (status, "retry-after" in headers) == (503, True)


async def test_without_a_stripe_key_billing_says_how_to_turn_it_on(ledger: Ledger) -> None:
    async with TestClient(TestServer(control_app(ledger, (TOKEN,), Clock()))) as client:
        call = caller(client)
        paths = ("customer", "subscription", "payment-method", "invoices", "plan-changes")
        for method, path in (*(("GET", path) for path in paths), ("POST", "checkout"), ("DELETE", "subscription")):
            status, problem = await call(method, path)
            assert (status, problem["title"]) == (501, "billing is off")
            assert "SIDECAR_STRIPE_KEY" in problem["detail"]
        async with client.get("/api/v1/tenants/acme/invoices") as answer:
            assert answer.status == 401


async def test_dead_letters_are_listed_and_replayed_by_command(ledger: Ledger, database: str) -> None:
    for number in range(2):
        event = webhooks.Received(
            id=f"evt_{number}", kind="invoice.paid", object="in_1", customer="cus_1", made_s=number, thin=False
        )
        assert await webhooks.keep(ledger, event)
        assert not await webhooks.keep(ledger, event)
    async with ledger.transaction() as tx:
        await tx._connection.execute("update webhook_events set state = 'dead', problem = 'odd' where id = 'evt_1'")

    def command(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", "stripe", *arguments],
            env={**os.environ, "SIDECAR_POSTGRES_DSN": database},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    listed = json.loads(await asyncio.to_thread(command, "events", "--json"))
    assert {one["id"]: one["state"] for one in listed} == {"evt_0": "waiting", "evt_1": "dead"}
    assert "odd" in await asyncio.to_thread(command, "events", "--dead")
    assert json.loads(await asyncio.to_thread(command, "replay", "--dead", "--json")) == {"replayed": ["evt_1"]}
    assert json.loads(await asyncio.to_thread(command, "events", "--dead", "--json")) == []
    await asyncio.to_thread(command, "replay", "evt_0")
    await asyncio.to_thread(command, "replay", "evt_nobody", status=1)
    await asyncio.to_thread(command, "replay", status=2)
