"""What the stand-in delivers: signed, at least once, in any order; and reports of events that failed later."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import stripe as sdk
from aiohttp import web

from sidecar.billing.stripe_api import StripeApi
from tests.servers.background import Background
from tests.servers.stripe import Stripe
from tests.servers.stripe_shop import make_meter

WAIT_S = 15


class Receiver(Background):
    """Takes webhooks; answers ``statuses`` first, then 200."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[str, bytes]] = []
        self.statuses: list[int] = []
        self.port = 0
        self._changed = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webhooks"

    async def open(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._take, access_log=None))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        with self._changed:
            self.received.append((request.headers["Stripe-Signature"], body))
            self._changed.notify_all()
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    def wait(self, enough: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(enough, WAIT_S), f"{len(self.received)} received"

    def types(self, secret: str) -> list[str]:
        return [sdk.Webhook.construct_event(body, header, secret).type for header, body in self.received]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture
def stripe(receiver: Receiver) -> Iterator[Stripe]:
    with Stripe() as server:
        server.deliver_to(receiver.url)
        yield server


@pytest.fixture
async def api(stripe: Stripe) -> AsyncIterator[StripeApi]:
    opened = StripeApi.open(stripe.key, stripe.url)
    yield opened
    await opened.close()


async def customers(api: StripeApi, count: int) -> list[str]:
    return [(await api.v1.customers.create_async({"name": str(number)})).id for number in range(count)]


async def test_events_are_signed_as_the_library_wants_them(stripe: Stripe, receiver: Receiver, api: StripeApi) -> None:
    made = await customers(api, 1)
    receiver.wait(lambda: len(receiver.received) == 1)
    header, body = receiver.received[0]
    event = sdk.Webhook.construct_event(body, header, stripe.webhook_secret)
    assert (event.type, event.data.object["id"]) == ("customer.created", made[0])
    with pytest.raises(sdk.SignatureVerificationError):
        sdk.Webhook.construct_event(body, header, "whsec_other")
    with pytest.raises(sdk.SignatureVerificationError):
        sdk.Webhook.construct_event(body + b" ", header, stripe.webhook_secret)
    again = await api.v1.events.retrieve_async(event.id)
    assert again.to_dict()["data"]["object"]["id"] == made[0]


async def test_two_secrets_sign_while_one_is_replaced(stripe: Stripe, receiver: Receiver, api: StripeApi) -> None:
    stripe.deliver_to(receiver.url, "whsec_old", "whsec_new")
    await customers(api, 1)
    receiver.wait(lambda: len(receiver.received) == 1)
    assert receiver.types("whsec_old") == receiver.types("whsec_new") == ["customer.created"]


async def test_what_is_not_taken_is_delivered_again(stripe: Stripe, receiver: Receiver, api: StripeApi) -> None:
    receiver.statuses = [500, 301]
    await customers(api, 1)
    receiver.wait(lambda: len(receiver.received) == 3)
    stripe.settle()
    assert stripe.state("undelivered") == {"undelivered": 0}
    assert len({body for _, body in receiver.received}) >= 1


async def test_webhooks_come_twice_late_out_of_order_or_never(
    stripe: Stripe, receiver: Receiver, api: StripeApi
) -> None:
    stripe.faults({"kind": "webhook_duplicate", "path": "customer.created", "count": 1, "times": 3})
    await customers(api, 1)
    receiver.wait(lambda: len(receiver.received) == 3)

    stripe.faults()
    stripe.faults({"kind": "webhook_never", "count": 2})
    await customers(api, 3)
    receiver.wait(lambda: len(receiver.received) == 4)
    stripe.settle()
    assert len(receiver.received) == 4

    stripe.faults()
    stripe.faults({"kind": "webhook_reorder", "seconds": 0.5})
    made = await customers(api, 20)
    receiver.wait(lambda: len(receiver.received) == 24)
    order = [sdk.Webhook.construct_event(body, header, stripe.webhook_secret) for header, body in receiver.received]
    got = [event.data.object["id"] for event in order[4:]]
    assert sorted(got) == sorted(made)
    assert got != made

    stripe.faults()
    stripe.redeliver(times=2, shuffle=7)
    # Every event there was, those that never came too, twice each.
    receiver.wait(lambda: len(receiver.received) == 24 + 2 * 24)
    stripe.settle()
    seen = Counter(sdk.Webhook.construct_event(*one[::-1], stripe.webhook_secret).id for one in receiver.received[24:])
    assert set(seen.values()) == {2}


async def test_deliveries_go_on_after_the_endpoint_was_away(stripe: Stripe, receiver: Receiver, api: StripeApi) -> None:
    receiver.stop()
    await customers(api, 1)
    receiver.start()
    receiver.wait(lambda: len(receiver.received) == 1)


async def test_a_stream_is_answered_first_and_reports_what_failed(
    stripe: Stripe, receiver: Receiver, api: StripeApi
) -> None:
    meter = await make_meter(api, "used")
    (customer,) = await customers(api, 1)
    session = await api.v2.billing.meter_event_session.create_async()
    bulk = StripeApi.open(session.authentication_token, stripe.url)
    batch: Any = [
        {"event_name": "used", "identifier": "good", "payload": {"stripe_customer_id": customer, "value": "3"}},
        {"event_name": "used", "identifier": "good", "payload": {"stripe_customer_id": customer, "value": "3"}},
        {"event_name": "used", "identifier": "digits", "payload": {"stripe_customer_id": customer, "value": "1" * 16}},
        {"event_name": "used", "identifier": "whose", "payload": {"stripe_customer_id": "cus_no", "value": "1"}},
        {"event_name": "none", "identifier": "lost", "payload": {"stripe_customer_id": customer, "value": "1"}},
    ]
    await bulk.v2.billing.meter_event_stream.create_async({"events": batch})
    receiver.wait(lambda: sum(b"v2.core.event" in body for _, body in receiver.received) == 2)
    assert [(total["meter"], total["total"]) for total in stripe.totals()] == [(meter, "3")]

    found = {}
    for header, body in receiver.received:
        if b"v2.core.event" in body:
            note: Any = api.client.parse_event_notification(body, header, stripe.webhook_secret)
            found[note.type] = note
    report = found["v1.billing.meter.error_report_triggered"]
    assert report.related_object.id == meter
    event: Any = await api.v2.core.events.retrieve_async(report.id)
    errors = {
        one.code: [sample.request.identifier for sample in one.sample_errors] for one in event.data.reason.error_types
    }
    assert errors == {"meter_event_value_too_many_digits": ["digits"], "meter_event_customer_not_found": ["whose"]}
    # Not by fetch_related_object_async: in the library's 16.1 it sends a parameter that no endpoint knows.
    assert (await api.v1.billing.meters.retrieve_async(report.related_object.id)).event_name == "used"
    lost: Any = await api.v2.core.events.retrieve_async(found["v1.billing.meter.no_meter_found"].id)
    assert lost.data.reason.error_types[0].code == "no_meter"

    with pytest.raises(sdk.InvalidRequestError):
        await bulk.v2.billing.meter_event_stream.create_async({"events": batch * 21})
    stripe.advance("15m")
    with pytest.raises(sdk.TemporarySessionExpiredError):
        await bulk.v2.billing.meter_event_stream.create_async({"events": batch})
    await bulk.close()


async def test_an_event_of_v1_can_be_taken_and_reported_as_refused_later(
    stripe: Stripe, receiver: Receiver, api: StripeApi
) -> None:
    meter = await make_meter(api, "used")
    (customer,) = await customers(api, 1)
    stripe.faults({"kind": "async_error", "path": "/v1/billing/meter_events", "code": "archived_meter", "count": 1})
    params: Any = {
        "event_name": "used",
        "identifier": "a",
        "payload": {"stripe_customer_id": customer, "value": "1"},
    }
    await api.v1.billing.meter_events.create_async(params)
    receiver.wait(lambda: any(b"error_report_triggered" in body for _, body in receiver.received))
    assert stripe.totals() == []
    report: Any = stripe.state("thin_events")["thin_events"][0]
    assert report["related_object"]["id"] == meter
    assert report["data"]["reason"]["error_types"][0]["sample_errors"][0]["request"]["identifier"] == "a"
    await api.v1.billing.meter_events.create_async(params)
    assert stripe.totals()[0]["total"] == "1"


async def test_an_endpoint_registered_by_the_api_has_its_own_secret(receiver: Receiver, api: StripeApi) -> None:
    receiver.received.clear()
    made = await api.v1.webhook_endpoints.create_async({"url": receiver.url, "enabled_events": ["product.created"]})
    assert made.secret
    await api.v1.products.create_async({"name": "p"})
    receiver.wait(lambda: len(receiver.received) == 2)

    def fits(header: str, body: bytes) -> bool:
        try:
            return bool(sdk.Webhook.construct_event(body, header, str(made.secret)))
        except sdk.SignatureVerificationError:
            return False

    assert sum(fits(*one) for one in receiver.received) == 1
    with pytest.raises(sdk.InvalidRequestError):
        await api.v1.webhook_endpoints.create_async({"url": "https://example.com", "enabled_events": ["*"]})
