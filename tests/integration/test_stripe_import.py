"""An account that had customers and subscriptions before: what becomes of them here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.billing import objects
from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions import subscriptions
from sidecar.billing.subscriptions.importing import AccountMapping, Adopted, MappingInvalid, adopt_account
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.catalogue.load import parse
from sidecar.clock import Clock
from sidecar.control import catalogues
from sidecar.control.catalogues import Catalogues
from sidecar.ledger import tenants
from sidecar.ledger.connection import Ledger
from tests.servers.stripe import KEY, Stripe

TEXT = (
    Path(__file__).parents[2] / "sidecar" / "catalogue" / "examples" / "agent_platform.yaml"
).read_text("utf-8")  # fmt: skip


@pytest.fixture
def stripe() -> Iterator[Stripe]:
    standin = Stripe()
    standin.start()
    standin.options(payment_method_needed=False)
    yield standin
    standin.stop()


@pytest.fixture
async def mirror(database: str, stripe: Stripe) -> AsyncIterator[Mirror]:
    ledger = await Ledger.open(database, shards=1)
    api = StripeApi.open(KEY, stripe.url)
    async with ledger.transaction() as tx:
        await catalogues.apply(tx, TEXT, "test", actor="test")
        await set_up(tx, api, parse(TEXT, "test"))
    yield Mirror(ledger, api, Catalogues().in_force, Clock())
    await api.close()
    await ledger.close()


async def customer(mirror: Mirror, tenant: str = "") -> str:
    params: Any = {"metadata": {"tenant": tenant}} if tenant else {}
    return (await mirror.api.v1.customers.create_async(params)).id


async def subscribed(mirror: Mirror, customer: str, *prices: str) -> str:
    params: Any = {"customer": customer, "items": [{"price": price} for price in prices]}
    return (await mirror.api.v1.subscriptions.create_async(params)).id


async def adopted(
    mirror: Mirror, mapping: AccountMapping | None = None, *, dry_run: bool = False
) -> dict[str, Adopted]:
    rows = await adopt_account(mirror, parse(TEXT, "test"), mapping or AccountMapping(), actor="test", dry_run=dry_run)
    return {row.customer: row for row in rows}


async def links(mirror: Mirror) -> dict[str, str]:
    async with mirror.ledger.transaction() as tx:
        return {row["tenant"]: row["customer"] for row in await tx.rows("linked_customers")}


async def test_customers_and_subscriptions_become_those_of_tenants(mirror: Mirror) -> None:
    async with mirror.ledger.transaction() as tx:
        standard = await objects.plan_prices(tx, "standard")
        await tenants.put(tx, "there", plan="free", actor="test")
    named, mapped, lost = await customer(mirror, "acme"), await customer(mirror), await customer(mirror)
    subscription = await subscribed(mirror, named, standard.base, *standard.metered.values())
    mapping = AccountMapping(customers={mapped: "there", "cus_gone": "x"})

    planned = await adopted(mirror, mapping, dry_run=True)
    assert await links(mirror) == {}
    found = await adopted(mirror, mapping)
    assert found == planned
    assert {id_: (row.action, row.tenant, row.creates) for id_, row in found.items()} == {
        named: ("link", "acme", True),
        mapped: ("link", "there", False),
        lost: ("unmapped", "", False),
        "cus_gone": ("unmapped", "x", False),
    }
    assert [(one.id, one.plan) for one in found[named].subscriptions] == [(subscription, "standard")]
    assert await links(mirror) == {"acme": named, "there": mapped}
    async with mirror.ledger.transaction() as tx:
        row = await tenants.show(tx, "acme")
        kept = await subscriptions.current(tx, "acme")
    assert (row.plan, row.status) == ("standard", "active")
    assert kept is not None
    assert row.anchor_s == kept.subscription.anchor_s
    assert len(kept.items) == 6
    told = await mirror.api.v1.customers.retrieve_async(mapped)
    assert told.to_dict()["metadata"] == {"tenant": "there"}

    again = await adopted(mirror, mapping)
    assert {row.action for row in again.values()} == {"known", "unmapped"}
    async with mirror.ledger.transaction() as tx:
        assert await tenants.show(tx, "acme") == row


async def test_a_tenant_keeps_its_customer_whatever_others_say(mirror: Mirror) -> None:
    first = await customer(mirror, "acme")
    await adopted(mirror)
    second = await customer(mirror, "acme")
    found = await adopted(mirror)
    assert (found[first].action, found[second].action) == ("known", "conflict")
    found = await adopted(mirror, AccountMapping(customers={second: "acme"}))
    assert (found[first].action, found[second].action) == ("known", "conflict")
    assert await links(mirror) == {"acme": first}


async def test_of_a_tenant_and_its_parent_one_is_adopted_and_the_others_go_on(mirror: Mirror) -> None:
    async with mirror.ledger.transaction() as tx:
        await tenants.put(tx, "firm", plan="free", actor="test")
        await tenants.put(tx, "team", plan="free", parent="firm", actor="test")
    made = [await customer(mirror, name) for name in ("other", "team", "firm")]
    found = await adopted(mirror)
    refused = [row for row in found.values() if row.action == "conflict"]
    assert [row.tenant in ("firm", "team") for row in refused] == [True]
    assert "paid twice" in refused[0].reason
    assert [found[one].action for one in made].count("link") == 2


async def test_prices_of_an_older_shop_are_told_by_the_mapping(mirror: Mirror) -> None:
    params: Any = {
        "currency": "usd",
        "unit_amount": 7_900,
        "recurring": {"interval": "month"},
        "product_data": {"name": "Old"},
    }
    old = (await mirror.api.v1.prices.create_async(params)).id
    client = await customer(mirror, "acme")
    await subscribed(mirror, client, old)
    found = await adopted(mirror)
    assert found[client].subscriptions[0].reason.startswith("none of its prices belongs to a plan")
    found = await adopted(mirror, AccountMapping(prices={old: "enterprise"}))
    assert found[client].subscriptions[0].plan == "enterprise"
    async with mirror.ledger.transaction() as tx:
        assert (await tenants.show(tx, "acme")).plan == "enterprise"
        assert (await objects.plan_prices(tx, "enterprise")).base != old
    # A setup does not take the old price for its own, nor forget it.
    async with mirror.ledger.transaction() as tx:
        report = await set_up(tx, mirror.api, parse(TEXT, "test"))
        assert report.effects == []
        assert (await objects.by_ids(tx, [old]))[old].plan == "enterprise"


async def test_a_metered_price_that_hears_nothing_from_here_is_not_mapped(mirror: Mirror) -> None:
    api = mirror.api.v1
    formula: Any = {"display_name": "Old", "event_name": "old_calls", "default_aggregation": {"formula": "sum"}}
    meter = (await api.billing.meters.create_async(formula)).id
    async with mirror.ledger.transaction() as tx:
        meters = await objects.objects(tx, "meter")
        standard = await objects.plan_prices(tx, "standard")
    right, wrong, *_ = standard.metered

    async def metered(meter: str) -> str:
        recurring = {"interval": "month", "usage_type": "metered", "meter": meter}
        params: Any = {"currency": "usd", "unit_amount": 1, "recurring": recurring, "product_data": {"name": "Old"}}
        return (await api.prices.create_async(params)).id

    foreign, swapped, good = await metered(meter), await metered(meters[wrong].id), await metered(meters[right].id)
    mapping = AccountMapping(prices=dict.fromkeys((foreign, swapped, good), f"standard:{right}"))
    clients = [await customer(mirror, f"t{number}") for number in range(3)]
    for client, price in zip(clients, (foreign, swapped, good), strict=True):
        await subscribed(mirror, client, standard.base, price)
    found = await adopted(mirror, mapping)
    told = [found[client].subscriptions[0] for client in clients]
    assert [one.plan for one in told] == ["standard"] * 3
    assert [one.reason[: one.reason.find(":")] for one in told[:2]] == [
        f"the price {price} is not mapped" for price in (foreign, swapped)
    ]
    assert told[2].reason == ""
    async with mirror.ledger.transaction() as tx:
        assert set(await objects.by_ids(tx, mapping.prices)) == {good}


async def test_the_command_prints_what_it_could_not_map(
    mirror: Mirror, stripe: Stripe, database: str, tmp_path: Path
) -> None:
    named, lost = await customer(mirror, "acme"), await customer(mirror)
    file = tmp_path / "mapping.csv"
    file.write_text(f"{lost},other\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")} | {
        "SIDECAR_POSTGRES_DSN": database,
        "SIDECAR_STRIPE_KEY": KEY,
        "SIDECAR_STRIPE_URL": stripe.url,
        "SIDECAR_SHARDS": "1",
    }

    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "sidecar", "stripe", "import", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = told("--dry-run")
    assert "unmapped: neither its metadata nor the mapping names a tenant" in shown
    assert "1 of 2 customers belong to tenants" in shown
    rows = {row["customer"]: row for row in json.loads(told("--mapping", str(file), "--json"))["customers"]}
    assert {id_: (row["action"], row["tenant"]) for id_, row in rows.items()} == {
        named: ("link", "acme"),
        lost: ("link", "other"),
    }
    assert await links(mirror) == {"acme": named, "other": lost}


async def test_a_mapping_to_a_plan_that_does_not_exist_is_refused(mirror: Mirror) -> None:
    with pytest.raises(MappingInvalid, match="mapped to the plan 'gold'; there are free, standard, enterprise"):
        await adopted(mirror, AccountMapping(prices={"price_1": "gold"}))
    with pytest.raises(MappingInvalid, match="mapped to the metric 'cals'"):
        await adopted(mirror, AccountMapping(prices={"price_1": "standard:cals"}))
