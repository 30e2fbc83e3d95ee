"""The stand-in as a program: kept state, refused keys, its place in `sidecar dev`, and in no wheel."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from sidecar.billing.stripe_api import StripeApi
from sidecar.cli import dev as dev_command
from sidecar.embedded import standin
from sidecar.embedded.standin import EmbeddedStripe
from sidecar.embedded.stripe import (
    checkout,
    customers,
    event_log,
    events,
    invoices,
    meters,
    payment_methods,
    portal,
    prices,
    products,
    schedules,
    subscription_fields,
    summaries,
    webhooks,
)
from sidecar.embedded.stripe.fields import Fields
from sidecar.embedded.stripe.server import StripeStandIn
from sidecar.settings import Settings
from sidecar.state import State
from tests.servers.sidecar_dev import SidecarDev
from tests.servers.stripe import KEY, Stripe
from tests.servers.stripe_shop import open_shop

ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "sidecar.embedded.stripe"]


@pytest.mark.parametrize("builder", [WheelBuilder, SdistBuilder])
def test_it_is_in_no_wheel_and_no_source_distribution(builder: Any) -> None:
    files = {file.distribution_path for file in builder(str(ROOT)).recurse_included_files()}
    assert any(name.endswith("sidecar/embedded/redis.py") for name in files)
    assert [name for name in files if "embedded/stripe/" in name] == []


@pytest.mark.parametrize("key", ["sk_live_0123456789", "rk_live_0123456789"])
def test_it_refuses_live_keys(key: str) -> None:
    done = subprocess.run([*MODULE, "--key", key], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "live key" in done.stderr
    assert key not in done.stderr


def of(name: str, kind: str) -> Any:
    """A class of parameters of the library, such as PriceCreateParams."""
    module, _, found = name.rpartition(".")
    return getattr(importlib.import_module(f"stripe.params{'.' if module else ''}{module}"), f"{found}{kind}Params")


def unknown(mine: Fields, theirs: Any) -> set[str]:
    """Parameters that the library has no name for, those of nested objects too."""
    known = {name for part in theirs.__mro__ for name in getattr(part, "__annotations__", {})}
    found = mine.names - known - {"test_clock", "expand"}
    module = sys.modules[theirs.__module__]
    for name in mine.names & known:
        inside = mine.nested(name)
        if inside is None:
            continue
        camel = "".join(word.capitalize() for word in name.split("_"))
        below = [getattr(module, theirs.__name__ + one, None) for one in (camel, camel.removesuffix("s"))]
        nested = next((one for one in below if one is not None), None)
        found |= {f"{name}.{one}" for one in (unknown(inside, nested) if nested is not None else {"?"})}
    return found


ENDPOINTS: dict[str, tuple[Fields, Any]] = {
    "customer create": (customers.CREATE, of("Customer", "Create")),
    "customer update": (customers.UPDATE, of("Customer", "Update")),
    "customer list": (customers.LIST, of("Customer", "List")),
    "product create": (products.CREATE, of("Product", "Create")),
    "product update": (products.UPDATE, of("Product", "Update")),
    "product list": (products.LIST, of("Product", "List")),
    "price create": (prices.CREATE, of("Price", "Create")),
    "price update": (prices.UPDATE, of("Price", "Update")),
    "price list": (prices.LIST, of("Price", "List")),
    "meter create": (meters.CREATE, of("billing.Meter", "Create")),
    "meter update": (meters.UPDATE, of("billing.Meter", "Update")),
    "meter list": (meters.LIST, of("billing.Meter", "List")),
    "meter event create": (events.CREATE, of("billing.MeterEvent", "Create")),
    "adjustment create": (events.ADJUST, of("billing.MeterEventAdjustment", "Create")),
    "summary list": (summaries.LIST, of("billing.MeterEventSummary", "List")),
    "subscription create": (subscription_fields.CREATE, of("Subscription", "Create")),
    "subscription update": (subscription_fields.UPDATE, of("Subscription", "Update")),
    "subscription cancel": (subscription_fields.CANCEL, of("Subscription", "Cancel")),
    "subscription resume": (subscription_fields.RESUME, of("Subscription", "Resume")),
    "subscription list": (subscription_fields.LIST, of("Subscription", "List")),
    "schedule create": (schedules.CREATE, of("SubscriptionSchedule", "Create")),
    "schedule update": (schedules.UPDATE, of("SubscriptionSchedule", "Update")),
    "invoice list": (invoices.LIST, of("Invoice", "List")),
    "invoice pay": (invoices.PAY, of("Invoice", "Pay")),
    "invoice preview": (invoices.PREVIEW, of("Invoice", "CreatePreview")),
    "checkout create": (checkout.CREATE, of("checkout.Session", "Create")),
    "checkout list": (checkout.LIST, of("checkout.Session", "List")),
    "portal session create": (portal.SESSION, of("billing_portal.Session", "Create")),
    "portal configuration create": (portal.CREATE, of("billing_portal.Configuration", "Create")),
    "portal configuration update": (portal.UPDATE, of("billing_portal.Configuration", "Update")),
    "portal configuration list": (portal.LIST, of("billing_portal.Configuration", "List")),
    "payment method list": (payment_methods.LIST, of("PaymentMethod", "List")),
    "webhook endpoint create": (webhooks.CREATE, of("WebhookEndpoint", "Create")),
    "event list": (event_log.LIST, of("Event", "List")),
}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_it_takes_no_parameter_that_the_library_does_not_know(name: str) -> None:
    assert unknown(*ENDPOINTS[name]) == set()


async def test_a_restart_goes_on_with_everything_it_was_told(tmp_path: Path) -> None:
    with Stripe() as server:
        server.stop()
        server.standin = StripeStandIn(KEY, state_file=tmp_path / "state.json")
        server.start()
        api = StripeApi.open(server.key, server.url)
        shop = await open_shop(api)
        customer = await shop.customer()
        subscription = await shop.subscribe(customer)
        await shop.use(customer, "user_seats", "26", identifier="a")
        await api.close()
        server.stop()
        before, server.standin = server.standin, StripeStandIn(KEY, state_file=tmp_path / "state.json")
        assert before.account.tables == server.standin.account.tables
        server.start()
        api = StripeApi.open(server.key, server.url)
        shop.api = api
        with pytest.raises(Exception, match="already exists with identifier a"):
            await shop.use(customer, "user_seats", "26", identifier="a")
        server.advance("32d")
        found = await api.v1.invoices.list_async({"subscription": subscription["id"]})
        assert [invoice.total for invoice in found.data] == [10_400, 9_900]
        await api.close()
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


async def test_an_embedded_one_keeps_its_key_and_port_and_dies_with_its_lock(servers_directory: Path) -> None:
    directory = servers_directory / "standin"
    server = EmbeddedStripe(directory, directory.with_suffix(".clock"))
    await server.start()
    url, key = server.url, server.key
    await server.deliver_to("http://127.0.0.1:9/webhooks")
    api = StripeApi.open(key, url)
    made = (await api.v1.customers.create_async({"name": "kept"})).id
    await server.stop()
    again = EmbeddedStripe(directory, directory.with_suffix(".clock"))
    await again.start()
    assert (again.url, again.key) == (url, key)
    assert (await api.v1.customers.retrieve_async(made)).name == "kept"
    assert key not in Path(f"/proc/{again.pid}/cmdline").read_text()
    await api.close()
    os.kill(again.pid, 9)
    await again.stop()


@pytest.fixture(scope="module")
def dev(servers_directory: Path) -> Iterator[SidecarDev]:
    with SidecarDev(servers_directory / "dev-stripe") as running:
        yield running


def control(url: str, method: str = "GET", body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=10) as answer:
        return json.loads(answer.read())


@pytest.mark.timeout(120)
def test_dev_runs_one_whose_clock_and_webhooks_are_those_of_dev(dev: SidecarDev) -> None:
    url = dev.at.stripe
    endpoints = control(f"{url}/_state?only=webhook_endpoints")["webhook_endpoints"]
    assert [one["url"] for one in endpoints] == [f"{dev.at.control}/webhooks/stripe"]
    before = control(f"{url}/_clock")["now"]
    control(f"{dev.at.ops}/dev/clock", "POST", {"advance": "36h"})
    assert 36 * 3_600 <= control(f"{url}/_clock")["now"] - before < 37 * 3_600
    control(f"{url}/_event", "POST", {"type": "customer.created", "object": {"id": "cus_x", "object": "customer"}})
    dev.stop()
    dev.start()
    assert dev.at.stripe == url
    events = control(f"{url}/_state?only=events")["events"]
    assert [event["type"] for event in events].count("customer.created") >= 1


@pytest.mark.parametrize(
    ("installed", "key", "runs"), [(True, "", True), (False, "", False), (True, "sk_test_x", False)]
)
def test_dev_goes_without_one_that_is_not_installed_or_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, key: str, runs: bool
) -> None:
    monkeypatch.setattr(standin, "is_there", lambda: installed)
    found = dev_command._embedded(State(tmp_path), Settings(stripe_key=key))
    assert (found.stripe is not None) == runs
    assert len(found.servers) == (3 if runs else 2)
