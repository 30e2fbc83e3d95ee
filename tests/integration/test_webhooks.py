"""Webhooks: who may send them, what becomes of them, and that their order and number do not matter."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import stripe
from aiohttp.test_utils import TestClient, TestServer

from sidecar import logs
from sidecar.billing import customers
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions import subscriptions
from sidecar.billing.subscriptions.mirror import UNHEARD_AT_ONCE, Mirror
from sidecar.billing.webhooks import events
from sidecar.billing.webhooks import inbox as inboxes
from sidecar.billing.webhooks.inbox import Inbox
from sidecar.billing.webhooks.webhooks import BODY_BYTES_MAX, WebhookCounters
from sidecar.clock import Clock
from sidecar.control.api import control_app
from sidecar.control.catalogues import Catalogues
from sidecar.control.webhooks import PATH, Receiver
from sidecar.embedded import free_port
from sidecar.errors import NotFound
from sidecar.ledger import audit, plans, tenants
from sidecar.ledger.connection import Ledger
from tests.servers.stripe_account import KEY, START_S, ScriptedAccount, event

SECRETS = ("whsec_the_old_one_of_the_endpoint", "whsec_the_new_one_of_the_endpoint")
TOKEN = "admin-token-of-this-test"
DAY_S = 86_400
CATALOGUE = """
metrics: {api_calls: {kind: sum}}
plans:
  free: {limits: {api_calls: 100}}
  standard: {price: 99, limits: {api_calls: 1000}}
  patient: {price: 99, limits: {api_calls: 1000}, past_due: {grace: 7d, then: free}}
identity: [{header: x-tenant-id}]
default: {costs: {api_calls: 1}}
"""


class Reports:
    """Stands where error reports are dealt with."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    async def __call__(self, event_id: str, kind: str, meter: str) -> None:
        self.seen.append((event_id, kind, meter))


class Bench:
    """A ledger, a scripted account, the receiver on the control listener, and an inbox a test drives itself."""

    def __init__(self, ledger: Ledger, account: ScriptedAccount, api: StripeApi, clock: Clock) -> None:
        self.ledger, self.account, self.clock = ledger, account, clock
        self.counters = WebhookCounters()
        self.woken = 0
        self.reports = Reports()
        self.mirror = Mirror(ledger, api, Catalogues().in_force, clock)
        self.inbox = Inbox(self.mirror, self.reports, self.counters)
        receiver = Receiver(ledger, SECRETS, clock, self.counters, self._wake)
        self.client = TestClient(TestServer(control_app(ledger, (TOKEN,), clock, receiver=receiver)))

    def _wake(self) -> None:
        self.woken += 1
        self.inbox.wake()

    async def send(
        self, body: object, *, secret: str = SECRETS[1], at_s: int | None = None, header: str | None = None
    ) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        signed = stripe.WebhookSignature.generate_signature_header(
            raw.decode(errors="replace"), secret, self.clock.wall_s() if at_s is None else at_s
        )
        headers = {"stripe-signature": signed if header is None else header}
        async with self.client.post(PATH, data=raw, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def drain(self) -> None:
        """Deal with everything that is due."""
        while await self.inbox.work():
            pass

    async def due(self) -> None:
        """Let the time of every next try come."""
        await self.execute("update webhook_events set next_try = now() where state = 'waiting'")

    async def execute(self, statement: str) -> None:
        async with self.ledger.transaction() as tx:
            await tx._connection.execute(statement)

    async def events(self) -> dict[str, tuple[str, int, str]]:
        async with self.ledger.transaction() as tx:
            return {one.id: (one.state, one.tries, one.problem) for one in await events.page(tx, most=1000)}

    async def tenant(self, name: str = "acme") -> tuple[str, str, int]:
        async with self.ledger.transaction() as tx:
            row = await tenants.show(tx, name)
        return row.plan, row.status, row.status_until_s

    async def put(self, tenant: str = "acme", customer: str = "cus_acme") -> None:
        async with self.ledger.transaction() as tx:
            await tenants.put(tx, tenant, plan="free", actor="test")
            await customers.link(tx, tenant, customer, actor="test")
        self.account.customer(customer, tenant)


@pytest.fixture
async def bench(database: str, tmp_path: Path) -> AsyncIterator[Bench]:
    ledger = await Ledger.open(database, connections_max=8)
    clock = Clock(tmp_path / "clock")
    clock.advance((START_S - clock.wall_s()) * 1000)
    await ledger.set_clock_ahead(clock.offset_ms // 1000)
    async with ledger.transaction() as tx:
        await plans.apply(tx, CATALOGUE, {}, actor="test")
    async with ScriptedAccount() as account:
        api = StripeApi.open(KEY, account.url, timeout_s=5)
        bench = Bench(ledger, account, api, clock)
        async with bench.client:
            yield bench
        await api.close()
    await ledger.close()


def thin(id_: str, kind: str, related: str = "") -> dict[str, Any]:
    made = {"id": id_, "object": "v2.core.event", "type": kind, "created": "2027-01-15T08:00:00.000Z"}
    return made | ({"related_object": {"id": related, "type": "billing.meter", "url": "/x"}} if related else {})


NOTE = {"id": "evt_1", "object": "event", "type": "billing.alert.triggered", "created": START_S, "data": {"object": {}}}


async def test_an_event_is_stored_before_it_is_acknowledged_and_once_however_often_it_is_sent(bench: Bench) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "standard")
    sent = event("evt_1", "customer.subscription.created", bench.account.objects["sub_1"])
    for _ in range(3):
        assert await bench.send(sent) == (200, {"received": "evt_1"})
    assert await bench.events() == {"evt_1": ("waiting", 0, "")}
    assert (bench.counters.received, bench.counters.repeated, bench.woken) == (1, 2, 1)
    await bench.drain()
    assert await bench.events() == {"evt_1": ("handled", 1, "")}
    assert await bench.tenant() == ("standard", "active", 0)


async def test_any_of_the_secrets_is_good_while_one_is_replaced(bench: Bench) -> None:
    for number, secret in enumerate(SECRETS):
        assert (await bench.send(NOTE | {"id": f"evt_{number}"}, secret=secret))[0] == 200
    assert (await bench.send(NOTE, secret="whsec_of_somebody_else"))[0] == 400


async def test_a_signature_holds_for_five_minutes_of_the_installations_own_clock(bench: Bench) -> None:
    now_s = bench.clock.wall_s()
    assert (await bench.send(NOTE, at_s=now_s - 290))[0] == 200
    status, problem = await bench.send(NOTE, at_s=now_s - 310)
    assert (status, problem["title"]) == (400, "no event")
    bench.clock.advance(36 * 3_600_000)
    assert (await bench.send(NOTE, at_s=now_s))[0] == 400
    assert (await bench.send(NOTE))[0] == 200


@pytest.mark.parametrize("broken", ["", "nonsense", "t=1", "v1=abc", "t=abc,v1=abc", "t=1,v1=\u00ff"])
async def test_a_signature_that_is_none_is_refused(bench: Bench, broken: str) -> None:
    assert (await bench.send(NOTE, header=broken))[0] == 400
    assert await bench.events() == {}
    assert bench.counters.refused == 1


async def test_an_old_signature_with_a_fresh_time_beside_it_is_refused(bench: Bench) -> None:
    old_s, now_s = START_S - DAY_S, bench.clock.wall_s()
    good = stripe.WebhookSignature.generate_signature_header(json.dumps(NOTE), SECRETS[1], old_s).partition(",")[2]
    for times in (f"t={old_s},t={now_s}", f"t={now_s},t={old_s}", f"t= {old_s},t={now_s}", f"t=+{old_s}", f"t={old_s}"):
        assert (await bench.send(NOTE, header=f"{times},{good}"))[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"id": "evt_1", "object": "list", "type": "x", "created": 1}',
        b'{"id": "evt\\u0000", "object": "event", "type": "x", "created": 1}',
        b'{"id": "evt_1", "object": "event", "type": "x", "created": "soon"}',
        b'{"id": "evt_1", "object": "event", "type": "x", "created": -1}',
        json.dumps(NOTE | {"id": "e" * 300}).encode(),
        json.dumps(event("evt_1", "invoice.paid", {"id": "in\u0000"})).encode(),
    ],
)
async def test_a_signed_body_that_is_no_event_is_refused(bench: Bench, body: bytes) -> None:
    assert (await bench.send(body))[0] == 400
    assert await bench.events() == {}


async def test_a_body_beyond_the_bound_is_refused_unread(bench: Bench) -> None:
    padded = NOTE | {"padding": "x" * (BODY_BYTES_MAX - 1000)}
    assert (await bench.send(padded))[0] == 200
    assert (await bench.send(NOTE | {"padding": "x" * BODY_BYTES_MAX}))[0] == 413

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65_536

    async with bench.client.post(PATH, data=endless()) as answer:
        assert answer.status == 413


async def test_while_postgres_is_away_nothing_is_acknowledged() -> None:
    ledger = await Ledger.open(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", timeout_s=2)
    clock = Clock()
    receiver = Receiver(ledger, SECRETS, clock, WebhookCounters(), lambda: None)
    body = json.dumps(NOTE)
    headers = {"stripe-signature": stripe.WebhookSignature.generate_signature_header(body, SECRETS[0])}
    async with TestClient(TestServer(control_app(ledger, (TOKEN,), clock, receiver=receiver))) as client:
        async with client.post(PATH, data=body, headers=headers) as answer:
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0
        async with client.post(PATH, data=body, headers={"stripe-signature": "t=1,v1=0"}) as answer:
            assert answer.status == 400
    await ledger.close()


async def test_without_a_secret_webhooks_are_off_and_say_how_to_turn_them_on() -> None:
    ledger = await Ledger.open("postgresql://nobody@127.0.0.1:1/nothing")
    for receiver in (None, Receiver(ledger, (), Clock(), WebhookCounters(), lambda: None)):
        async with (
            TestClient(TestServer(control_app(ledger, (TOKEN,), Clock(), receiver=receiver))) as client,
            client.post(PATH, data=b"{}") as answer,
        ):
            assert answer.status == 501
            assert answer.content_type == "application/problem+json"
    await ledger.close()


async def test_events_nobody_handles_are_stored_and_acknowledged(bench: Bench) -> None:
    kinds = (
        "billing.alert.triggered",
        "billing.credit_grant.created",
        "billing.credit_grant.updated",
        "charge.succeeded",
    )
    for kind in kinds:
        assert (await bench.send(NOTE | {"id": f"evt_{kind}", "type": kind}))[0] == 200
    assert {state for state, _, _ in (await bench.events()).values()} == {"handled"}
    assert not await bench.inbox.work()


async def test_error_reports_of_meters_are_thin_events_and_each_is_dealt_with(bench: Bench) -> None:
    kind = "v1.billing.meter.error_report_triggered"
    await bench.send(thin("evt_1", kind, "mtr_1"))
    await bench.send(thin("evt_2", kind, "mtr_1"))
    await bench.send(thin("evt_3", "v1.billing.meter.no_meter_found"))
    await bench.drain()
    assert sorted(bench.reports.seen) == [
        ("evt_1", kind, "mtr_1"),
        ("evt_2", kind, "mtr_1"),
        ("evt_3", "v1.billing.meter.no_meter_found", ""),
    ]


async def test_the_present_object_counts_and_not_what_an_old_event_carries(bench: Bench) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "patient", "trialing")
    stale = event("evt_1", "customer.subscription.updated", bench.account.objects["sub_1"])
    bench.account.subscription("sub_1", "cus_acme", "standard", "unpaid")
    await bench.send(stale)
    await bench.drain()
    assert await bench.tenant() == ("standard", "unpaid", 0)


async def test_events_of_one_object_that_wait_together_are_one_look(bench: Bench) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "standard")
    about = bench.account.objects["sub_1"]
    for number in range(20):
        await bench.send(event(f"evt_{number}", "customer.subscription.updated", about, START_S + number // 2))
    await bench.drain()
    assert bench.account.asked.count("sub_1") == 1
    assert {state for state, _, _ in (await bench.events()).values()} == {"handled"}


async def test_two_events_of_one_occurrence_are_told_of_once(bench: Bench) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "standard", "trialing", trial_end=START_S + 3 * DAY_S)
    about = bench.account.objects["sub_1"]
    for number in range(2):
        await bench.send(event(f"evt_{number}", "customer.subscription.trial_will_end", about))
    await bench.drain()
    await bench.send(event("evt_later", "customer.subscription.trial_will_end", about))
    await bench.drain()
    async with bench.ledger.transaction() as tx:
        told = [entry.action for entry in await audit.read(tx, tenant="acme")]
    assert told.count("stripe.customer.subscription.trial_will_end") == 1


async def test_a_look_that_was_slower_than_a_later_one_changes_nothing(bench: Bench) -> None:
    """A fetch of the old state that is kept last, as two processes at once may do."""
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "patient", "active")
    early, old = await bench.mirror.look(), dict(bench.account.objects["sub_1"])
    bench.account.subscription("sub_1", "cus_acme", "standard", "unpaid")
    await bench.mirror.subscription("sub_1")
    await bench.mirror.keep_subscription(old, early)
    assert await bench.tenant() == ("standard", "unpaid", 0)


async def test_what_fails_is_tried_again_and_becomes_a_dead_letter_that_can_be_replayed(bench: Bench) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "standard")
    bench.account.failing["sub_1"] = 400
    await bench.send(event("evt_1", "customer.subscription.updated", bench.account.objects["sub_1"]))
    for tries in range(1, inboxes.TRIES_MAX):
        await bench.drain()
        assert (await bench.events())["evt_1"][:2] == ("waiting", tries)
        assert not await bench.inbox.work(), "not before its time"
        await bench.due()
    await bench.drain()
    state, _, problem = (await bench.events())["evt_1"]
    assert state == "dead"
    assert "Stripe refused" in problem
    await bench.inbox.keep_house()
    assert bench.counters.dead == 1
    bench.account.failing.clear()
    async with bench.ledger.transaction() as tx:
        assert [one.id for one in await events.page(tx, state="dead")] == ["evt_1"]
        assert await events.replay(tx, "", actor="op") == ["evt_1"]
        with pytest.raises(NotFound):
            await events.replay(tx, "evt_unknown", actor="op")
    await bench.drain()
    assert (await bench.events())["evt_1"][0] == "handled"
    assert await bench.tenant() == ("standard", "active", 0)


async def test_an_object_nobody_can_understand_is_a_dead_letter_and_does_not_stop_the_others(bench: Bench) -> None:
    await bench.put()
    bench.account.objects["sub_odd"] = {"id": "sub_odd", "object": "subscription", "customer": "cus_acme"}
    bench.account.subscription("sub_1", "cus_acme", "standard")
    await bench.send(event("evt_odd", "customer.subscription.updated", bench.account.objects["sub_odd"]))
    await bench.send(event("evt_1", "customer.subscription.updated", bench.account.objects["sub_1"]))
    await bench.drain()
    found = await bench.events()
    assert (found["evt_odd"][0], found["evt_1"][0]) == ("waiting", "handled")
    assert "KeyError" in found["evt_odd"][2]


async def test_while_stripe_is_away_nothing_becomes_a_dead_letter(bench: Bench) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "standard")
    bench.account.failing["sub_1"] = 500
    await bench.send(event("evt_1", "customer.subscription.updated", bench.account.objects["sub_1"]))
    for _ in range(3 * inboxes.TRIES_MAX):
        await bench.drain()
        await bench.due()
    assert (await bench.events())["evt_1"][:2] == ("waiting", 0)
    bench.account.failing.clear()
    await bench.drain()
    assert await bench.tenant() == ("standard", "active", 0)


async def test_a_customer_is_linked_by_the_tenant_it_names_and_forgotten_when_it_is_deleted(bench: Bench) -> None:
    async with bench.ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor="test")
    bench.account.customer("cus_1", "acme")
    bench.account.customer("cus_2", "acme")
    bench.account.customer("cus_3", "nobody")
    # The subscription's event comes first: the customer is found all the same.
    bench.account.subscription("sub_1", "cus_1", "standard")
    await bench.send(event("evt_1", "customer.subscription.created", bench.account.objects["sub_1"]))
    await bench.drain()
    assert await bench.tenant() == ("standard", "active", 0)
    for number in (1, 2, 3):
        about = bench.account.objects[f"cus_{number}"]
        await bench.send(event(f"evt_c{number}", "customer.created", about))
    await bench.drain()
    found = await bench.events()
    assert [found[f"evt_c{number}"][2] for number in (1, 2, 3)] == ["", inboxes.NO_TENANT, inboxes.NO_TENANT]
    bench.account.objects["cus_1"] = {"id": "cus_1", "object": "customer", "deleted": True}
    await bench.send(event("evt_d", "customer.deleted", bench.account.objects["cus_1"]))
    await bench.drain()
    async with bench.ledger.transaction() as tx:
        with pytest.raises(NotFound):
            await customers.of_tenant(tx, "acme")


async def test_checkout_brings_its_customer_and_subscription(bench: Bench) -> None:
    async with bench.ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor="test")
    bench.account.customer("cus_1", "acme")
    bench.account.subscription("sub_1", "cus_1", "patient")
    session = {"id": "cs_1", "object": "checkout.session", "customer": "cus_1", "subscription": "sub_1"}
    bench.account.objects["cs_1"] = session
    await bench.send(event("evt_1", "checkout.session.completed", session))
    await bench.drain()
    assert await bench.tenant() == ("patient", "active", 0)


async def test_who_pays_on_a_payment_link_cannot_name_the_tenant_it_becomes(bench: Bench) -> None:
    """`client_reference_id` stands in the link's address, where anybody may write the id of somebody else."""
    async with bench.ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor="test")
    bench.account.customer("cus_1")
    bench.account.subscription("sub_1", "cus_1", "standard")
    session = {
        "id": "cs_1",
        "object": "checkout.session",
        "customer": "cus_1",
        "client_reference_id": "acme",
        "subscription": "sub_1",
    }
    bench.account.objects["cs_1"] = session
    await bench.send(event("evt_1", "checkout.session.completed", session))
    await bench.drain()
    assert (await bench.events())["evt_1"] == ("handled", 1, inboxes.NO_TENANT)
    assert await bench.tenant() == ("free", "active", 0)
    async with bench.ledger.transaction() as tx:
        assert await tx.rows("linked_customers") == []


@pytest.mark.parametrize("customer_first", [True, False])
async def test_with_its_customer_a_subscription_ends_whichever_news_come_first(
    bench: Bench, customer_first: bool
) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "standard")
    await bench.mirror.subscription("sub_1")
    assert await bench.tenant() == ("standard", "active", 0)
    bench.account.objects["cus_acme"] = {"id": "cus_acme", "object": "customer", "deleted": True}
    bench.account.subscription("sub_1", "cus_acme", "standard", "canceled", ended_at=START_S + 10)
    news = [
        event("evt_c", "customer.deleted", bench.account.objects["cus_acme"]),
        event("evt_s", "customer.subscription.deleted", bench.account.objects["sub_1"]),
    ]
    for one in news if customer_first else reversed(news):
        await bench.send(one)
        await bench.drain()
        assert await bench.tenant() == ("standard", "cancelled", 0)
    assert {found[::2] for found in (await bench.events()).values()} == {("handled", "")}
    async with bench.ledger.transaction() as tx:
        (kept,) = await subscriptions.of_tenant(tx, "acme")
    assert (kept.status, kept.ended_s) == ("canceled", START_S + 10)


@pytest.mark.parametrize(("there", "status"), [("living", "cancelled"), ("deleted", "cancelled"), ("", "active")])
async def test_a_subscription_that_is_gone_ends_unless_the_account_seems_to_be_another_one(
    bench: Bench, there: str, status: str
) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "standard")
    await bench.mirror.subscription("sub_1")
    await bench.execute("update subscriptions set updated = ledger_now() - interval '2 days'")
    del bench.account.objects["sub_1"]
    if there == "deleted":
        bench.account.objects["cus_acme"] = {"id": "cus_acme", "object": "customer", "deleted": True}
    elif not there:
        del bench.account.objects["cus_acme"]
    assert await bench.mirror.look_again() == 1
    assert await bench.tenant() == ("standard", status, 0)


async def test_usage_is_billed_from_a_subscriptions_start_and_not_from_its_news(bench: Bench) -> None:
    await bench.put()
    late_s, old_s = START_S - 5 * 3600 + 90, START_S - 90 * DAY_S
    await bench.put("imported", "cus_imported")
    await bench.put("old", "cus_old")
    for tenant, made_s in (("acme", late_s), ("imported", late_s), ("old", old_s)):
        name = f"sub_{tenant}"
        bench.account.subscription(name, f"cus_{tenant}", "standard", created=made_s, billing_cycle_anchor=made_s)
    await bench.execute("update billing_customers set looked = true")
    before = await billed_from(bench)
    look = await bench.mirror.look()
    await bench.mirror.keep_subscription(bench.account.objects["sub_imported"], look, adopted=True)
    for tenant in ("acme", "imported", "old"):
        await bench.mirror.subscription(f"sub_{tenant}")
    hour_s = late_s // 3600 * 3600
    assert await billed_from(bench) == before | {"acme": (hour_s, False)}
    # A later one raises nothing.
    bench.account.subscription("sub_later", "cus_acme", "standard", created=START_S)
    await bench.mirror.subscription("sub_later")
    assert (await billed_from(bench))["acme"][0] == hour_s


async def billed_from(bench: Bench) -> dict[str, tuple[int, bool]]:
    async with bench.ledger.transaction() as tx:
        rows = await tx._connection.fetch(
            "select tenant, extract(epoch from billed_from)::bigint, looked from billing_customers"
        )
    return {row[0]: (row[1], row[2]) for row in rows}


async def test_a_second_living_subscription_of_a_tenant_is_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.put()
    for name in ("sub_1", "sub_2", "sub_2", "sub_1"):
        bench.account.subscription(name, "cus_acme", "standard")
        await bench.mirror.subscription(name)
    async with bench.ledger.transaction() as tx:
        told = [one.detail for one in await audit.read(tx, tenant="acme") if one.action == "billing.two_subscriptions"]
    assert told == [{"subscriptions": ["sub_2", "sub_1"]}]
    assert caplog.text.count("more than one subscription") == 1
    await bench.inbox.keep_house()
    assert bench.counters.doubled == 1


async def test_graces_end_and_others_are_looked_at_whatever_cannot_be_fetched(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "patient", "past_due")
    bench.account.invoice("in_1", "cus_acme", "sub_1", "open")
    await bench.mirror.invoice("in_1")
    await bench.mirror.subscription("sub_1")
    for number in range(UNHEARD_AT_ONCE + 1):
        await bench.put(f"t{number}", f"cus_{number}")
        bench.account.subscription(f"sub_t{number}", f"cus_{number}", "standard")
        await bench.mirror.subscription(f"sub_t{number}")
    bench.clock.advance(8 * DAY_S * 1000)
    await bench.ledger.set_clock_ahead(bench.clock.offset_ms // 1000)
    await bench.execute("update subscriptions set updated = updated - interval '2 hours' where id <> 'sub_1'")
    last = f"sub_t{UNHEARD_AT_ONCE}"
    await bench.execute("update subscriptions set updated = updated + interval '1 hour' where id ~ '^sub_(1|t25)$'")
    bench.account.failing |= {f"sub_t{number}": 400 for number in range(UNHEARD_AT_ONCE)}
    assert await bench.mirror.look_again() == UNHEARD_AT_ONCE
    bench.account.asked.clear()
    await bench.mirror.look_again()
    assert last in bench.account.asked, "the others are at the end of the line"

    # Stripe is away altogether.
    await bench.execute("update subscriptions set updated = updated - interval '2 days'")
    bench.account.failing |= dict.fromkeys(bench.account.objects, 500)
    monkeypatch.setattr(inboxes, "POLL_S", 0.02)
    running = asyncio.create_task(bench.inbox.run())
    try:
        async with asyncio.timeout(10):
            while (await bench.tenant())[1] != "active" or (await bench.tenant())[0] != "free":
                await asyncio.sleep(0.02)
    finally:
        running.cancel()


async def test_the_grace_after_a_failed_payment_ends_without_any_word_from_stripe(bench: Bench) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "patient", "past_due")
    bench.account.invoice("in_1", "cus_acme", "sub_1", "open")
    await bench.send(event("evt_1", "invoice.payment_failed", bench.account.objects["in_1"]))
    await bench.send(event("evt_2", "customer.subscription.updated", bench.account.objects["sub_1"]))
    await bench.drain()
    assert await bench.tenant() == ("patient", "past_due", START_S + 7 * DAY_S)
    bench.clock.advance(8 * DAY_S * 1000)
    await bench.ledger.set_clock_ahead(bench.clock.offset_ms // 1000)
    assert await bench.mirror.end_graces() == 1
    assert await bench.tenant() == ("free", "active", 0)
    assert await bench.mirror.end_graces() == 0
    bench.account.subscription("sub_1", "cus_acme", "patient", "active")
    bench.account.invoice("in_1", "cus_acme", "sub_1", "paid")
    await bench.send(event("evt_3", "invoice.paid", bench.account.objects["in_1"]))
    await bench.send(event("evt_4", "customer.subscription.updated", bench.account.objects["sub_1"]))
    await bench.drain()
    assert await bench.tenant() == ("patient", "active", 0)
    async with bench.ledger.transaction() as tx:
        history = [(one.from_plan, one.to_plan) for one in await tenants.plan_changes(tx, "acme")]
    assert history == [("free", "patient"), ("patient", "free"), ("free", "patient")]


async def test_a_suspension_by_an_operator_outlives_what_stripe_says(bench: Bench) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "patient", "active")
    await bench.mirror.subscription("sub_1")
    async with bench.ledger.transaction() as tx:
        await tenants.set_status(tx, "acme", "suspended", actor="op")
    bench.account.subscription("sub_1", "cus_acme", "standard", "active")
    await bench.mirror.subscription("sub_1")
    assert await bench.tenant() == ("standard", "suspended", 0)
    async with bench.ledger.transaction() as tx:
        await tenants.set_status(tx, "acme", "active", actor="op")
    bench.account.subscription("sub_1", "cus_acme", "standard", "past_due")
    await bench.mirror.subscription("sub_1")
    assert await bench.tenant() == ("standard", "suspended", 0)
    bench.account.subscription("sub_1", "cus_acme", "standard", "active")
    await bench.mirror.subscription("sub_1")
    assert await bench.tenant() == ("standard", "active", 0)


async def test_several_processes_share_the_events_and_each_is_dealt_with_once(bench: Bench) -> None:
    for number in range(40):
        await bench.put(f"t{number}", f"cus_{number}")
        bench.account.subscription(f"sub_{number}", f"cus_{number}", "standard")
        about = bench.account.objects[f"sub_{number}"]
        await bench.send(event(f"evt_{number}", "customer.subscription.updated", about))
    bench.account.asked.clear()
    others = [Inbox(bench.mirror, bench.reports) for _ in range(3)]

    async def drain(inbox: Inbox) -> None:
        while await inbox.work():
            pass

    await asyncio.gather(*(drain(inbox) for inbox in (bench.inbox, *others)))
    assert sorted(bench.account.asked) == sorted(f"sub_{number}" for number in range(40))
    assert {state for state, _, _ in (await bench.events()).values()} == {"handled"}


async def test_what_a_process_took_and_never_finished_is_taken_by_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.put()
    bench.account.subscription("sub_1", "cus_acme", "standard")
    await bench.send(event("evt_1", "customer.subscription.updated", bench.account.objects["sub_1"]))

    async def killed(*_: object) -> None:
        return

    with monkeypatch.context() as patch:
        patch.setattr(bench.inbox, "_deal_with", killed)
        assert await bench.inbox.work()
    assert not await bench.inbox.work(), "while the claim holds"
    await bench.due()
    await bench.drain()
    assert await bench.tenant() == ("standard", "active", 0)


# --- hundreds of events of every status --------------------------------------------------------------------------

TENANTS = 20
STEPS_PER_TENANT = 20
STATE = """
select 'tenant', id, plan, status, status_until::text, anchor::text from tenants
union all select 'subscription', id, plan, status, tenant || cancel_at_period_end::text, coalesce(ended::text, '')
    from subscriptions
union all select 'item', id, plan, price, period_start::text, period_end::text from subscription_items
union all select 'invoice', id, subscription, status, amount_remaining::text, coalesce(owed_since::text, '')
    from invoices
union all select 'line', invoice, price, amount::text, quantity::text, description from invoice_lines
union all select 'customer', customer, tenant, '', '', '' from billing_customers
order by 1, 2, 3
"""


def happen(account: ScriptedAccount, fates: list[random.Random], step: int) -> list[dict[str, Any]]:
    """What happens next to each of the twenty subscriptions, and the events that tell of it."""
    told: list[dict[str, Any]] = []
    for number, fate in enumerate(fates):
        customer = f"cus_{number}"
        if step == 0:
            account.customer(customer, f"t{number}")
            told.append(event(f"evt_{number}_0", "customer.created", account.objects[customer]))
            continue
        kind, about = _step(account, fate, customer, f"sub_{number}", number, step)
        told.append(event(f"evt_{number}_{step}", kind, about, START_S + step // 3))
    return told


def fates() -> list[random.Random]:
    return [random.Random(number) for number in range(TENANTS)]


def _step(
    account: ScriptedAccount, random_: random.Random, customer: str, name: str, number: int, step: int
) -> tuple[str, dict[str, Any]]:
    invoice = f"in_{number}_{step // 10}"
    if step > 1 and random_.random() < 0.4:
        status = random_.choice(("draft", "open", "paid", "void"))
        account.invoice(invoice, customer, name, status)
        kind = {"draft": "created", "open": "payment_failed", "paid": "paid", "void": "voided"}[status]
        return f"invoice.{kind}", account.objects[invoice]
    if step == 1:
        account.subscription(name, customer, "standard", "trialing", trial_end=START_S + 7 * DAY_S)
        return "customer.subscription.created", account.objects[name]
    status = random_.choice(("active", "past_due", "unpaid", "paused", "active", "past_due"))
    if step == STEPS_PER_TENANT - 1 and number % 5 == 0:
        account.subscription(name, customer, "patient", "canceled", ended_at=START_S + 10)
        return "customer.subscription.deleted", account.objects[name]
    account.subscription(name, customer, random_.choice(("standard", "patient")), status)
    return "customer.subscription.updated", account.objects[name]


async def state(bench: Bench) -> list[tuple[Any, ...]]:
    async with bench.ledger.transaction() as tx:
        return [tuple(row) for row in await tx._connection.fetch(STATE)]


async def fresh(bench: Bench) -> None:
    await bench.execute(
        "truncate webhook_events, subscription_items, subscriptions, invoice_lines, invoices, billing_customers, "
        "billing_changes, plan_changes, tenants cascade"
    )
    bench.account.objects.clear()
    async with bench.ledger.transaction() as tx:
        for number in range(TENANTS):
            await tenants.put(tx, f"t{number}", plan="free", actor="test")


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_webhooks_of_every_status_shuffled_and_repeated_end_as_the_ordered_ones_do(bench: Bench) -> None:
    """Ordered: each event is delivered once, right when it happens. Shuffled: all at the end, one to three times."""
    await fresh(bench)
    account, lives = bench.account, fates()
    for step in range(STEPS_PER_TENANT):
        answers = await asyncio.gather(*(bench.send(one) for one in happen(account, lives, step)))
        assert {status for status, _ in answers} == {200}
        await bench.drain()
    ordered = await state(bench)
    assert {row[3] for row in ordered if row[0] == "tenant"} > {"active", "cancelled"}

    await fresh(bench)
    lives = fates()
    told = [one for step in range(STEPS_PER_TENANT) for one in happen(account, lives, step)]
    assert len(told) == TENANTS * STEPS_PER_TENANT
    order = random.Random(11)
    deliveries = [one for one in told for _ in range(order.randint(1, 3))]
    order.shuffle(deliveries)
    for start in range(0, len(deliveries), 50):
        answers = await asyncio.gather(*(bench.send(one) for one in deliveries[start : start + 50]))
        assert {status for status, _ in answers} == {200}
        if order.random() < 0.5:
            await bench.inbox.work()
    await bench.drain()
    assert await state(bench) == ordered
    assert bench.counters.repeated == len(deliveries) - len(told)


# --- secrets -----------------------------------------------------------------------------------------------------


async def everything(database: str) -> list[tuple[Any, ...]]:
    """All rows of all tables."""
    connection = await asyncpg.connect(database)
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    rows = [tuple(row) for name in tables for row in await connection.fetch(f'select * from "{name[0]}"')]  # noqa: S608
    await connection.close()
    return rows


async def test_secrets_appear_in_no_log_answer_metric_or_row(bench: Bench, database: str) -> None:
    captured = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers, root.level
    logs.configure("debug", "test", captured)
    answers: list[object] = []
    try:
        await bench.put()
        bench.account.subscription("sub_1", "cus_acme", "standard")
        about = bench.account.objects["sub_1"]
        for number, status in enumerate((400, 401, 402, 403, 404, 409, 429, 500, 503)):
            bench.account.failing["sub_1"] = status
            answers.append(await bench.send(event(f"evt_{number}", "customer.subscription.updated", about)))
            await bench.drain()
        answers.append(await bench.send(NOTE, secret="whsec_wrong"))
        answers.append(await bench.send(NOTE, header="t=1,v1=00"))
        answers.append(await bench.send(b"\xff", header=f"t=1,v1={SECRETS[0]}"))
        rows = await everything(database)
        await bench.account.server.close()
        await bench.due()
        await bench.drain()
        rows += await everything(database)
    finally:
        root.handlers = before
        root.setLevel(level)
    answers.append(bench.counters.reading())
    assert "webhook is refused" in captured.getvalue()
    assert any("Stripe refused" in str(row) for row in rows)
    for secret in (KEY, *SECRETS, TOKEN):
        assert secret not in captured.getvalue()
        assert secret not in str(answers)
        assert secret not in str(rows)
