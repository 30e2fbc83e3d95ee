"""Usage on its way to Stripe while everything fails: Stripe's total is the ledger's in the end."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal

import pytest

from sidecar.billing.outbox.forwarder import Forwarder
from sidecar.billing.outbox.rejection import rejected
from sidecar.errors import Conflict
from sidecar.ledger.distrust import distrust
from tests.servers.forwarding import DAY_S, HOUR_S, Forwarding

STEPS = (
    "decided",
    "claiming",
    "claimed, not committed",
    "claimed",
    "calling",
    "called",
    "recording",
    "recorded, not committed",
    "recorded",
    "settled",
)
EVENTS = "/v1/billing/meter_events"


class Killed(BaseException):
    """The process is gone: nothing catches this."""


def killed_at(step: str, time: int) -> Callable[[str], None]:
    """Kill the forwarder when it comes to a step for the nth time."""
    left = time

    def kill(name: str) -> None:
        nonlocal left
        if name == step:
            left -= 1
            if left == 0:
                raise Killed(step)

    return kill


async def until_killed(forwarder: Forwarder) -> bool:
    """Forward what there is; whether the forwarder was killed on the way."""
    try:
        await forwarder.decide()
        await forwarder.pump()
    except Killed:
        return True
    return False


async def claims_end(place: Forwarding) -> None:
    """The time passes after which a dead forwarder's claims are void."""
    await place.sql(
        "update stripe_lanes set claimed_until = now() - interval '1 second' where claimed_until is not null"
    )


async def reports(place: Forwarding, seen: set[str]) -> None:
    """Stripe's error reports on events it had taken come in, each of them twice."""
    for item in place.stripe.state("refused")["refused"]:
        identifier = item["identifier"]
        if item["code"] != "archived_meter" or identifier in seen:
            continue
        with suppress(Conflict):  # it is being sent again; the webhook is repeated
            async with place.ledger.transaction() as tx:
                await rejected(tx, identifier, item["code"], item["message"])
            seen.add(identifier)
            with suppress(Conflict):
                async with place.ledger.transaction() as tx:
                    await rejected(tx, identifier, item["code"], item["message"])


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_ten_thousand_deltas_arrive_once_though_calls_fail_and_forwarders_die(place: Forwarding) -> None:
    chance = random.Random(20)
    names = [f"tenant-{n}" for n in range(500)]
    await place.tenants(names)
    for hours_ago in range(10):
        amounts = [(name, metric, chance.randint(1, 10**6)) for name in names for metric in ("api_calls", "llm_tokens")]
        await place.count_all(amounts, hour_s=place.now_s - hours_ago * HOUR_S)
    kinds = ("rate_limited", "rate_limited_no_reason", "error_before", "error_after", "cut_before", "cut_after", "slow")
    place.stripe.faults(
        *({"kind": kind, "path": EVENTS, "share": 0.043, "seed": n, "seconds": 0.05} for n, kind in enumerate(kinds)),
        {"kind": "async_error", "path": EVENTS, "share": 0.02, "seed": 9},
    )
    died: set[str] = set()
    reported: set[str] = set()
    for turn in range(400):
        step = STEPS[turn % len(STEPS)]
        forwarder = place.forwarder(
            step=killed_at(step, chance.choice((1, 7, 40) if step.startswith("call") else (1, 2))), timeout_s=5
        )
        if await until_killed(forwarder):
            died.add(step)
            await claims_end(place)
        await reports(place, reported)
        if turn == 60:
            place.stripe.faults()
        await place.advance(chance.choice((20, 61, 305)))
        if turn > 60 and not (await place.states()).keys() - {"delivered"}:
            break
    assert died >= set(STEPS) - {"settled"}
    assert reported
    states = await place.states()
    assert states.keys() == {"delivered"}
    assert states["delivered"] >= 10_000
    await place.agree()
    refused = [item for item in place.stripe.state("refused")["refused"] if item["identifier"] not in reported]
    assert [item for item in refused if "already exists" not in item["message"]] == []
    assert all(n["accepted"] == 1 for n in place.stripe.state("identifiers")["identifiers"].values() if n["accepted"])


async def test_stripe_away_for_thirty_hours_loses_and_doubles_nothing(
    place: Forwarding, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"tenant-{n}" for n in range(8)]
    await place.tenants(names)
    forwarder = place.forwarder(timeout_s=5)
    await place.count_all([(name, "api_calls", 100 + n) for n, name in enumerate(names)])
    place.stripe.faults(
        {"kind": "cut_after", "path": EVENTS, "share": 0.5, "seed": 3}, {"kind": "cut_before", "path": EVENTS}
    )
    await forwarder.flush()
    arrived = place.at_stripe()
    assert 0 < len(arrived) < len(names)
    for _ in range(30):
        await place.advance(HOUR_S)
        place.stripe.faults()
        place.stripe.faults({"kind": "error_before"})
        await place.count_all([(name, "api_calls", 7) for name in names])
        await forwarder.decide()
        await forwarder.pump()
    place.stripe.faults()
    assert place.at_stripe() == arrived
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            await place.advance(600)
            await forwarder.decide()
            await forwarder.pump()
    await place.agree()
    assert await place.states() == {"delivered": len(await place.rows())}
    told = [record.getMessage() for record in caplog.records]
    assert told.count("delta in doubt settled") >= len(names) - 1
    attempts = {
        row["tenant"]: row["attempt"] for row in await place.rows() if row["number"] == 1 and row["amount"] >= 100
    }
    assert {name for name, attempt in attempts.items() if attempt == 1} == {tenant for tenant, _ in arrived}


async def test_postgres_an_hour_older_than_stripe_ends_with_equal_totals(place: Forwarding) -> None:
    names = [f"tenant-{n}" for n in range(12)]
    await place.tenants(names)
    forwarder = place.forwarder()
    await place.count_all([(name, metric, 1_000) for name in names for metric in ("api_calls", "llm_tokens")])
    await forwarder.flush()
    await place.back_up()
    for _ in range(12):
        await place.advance(300)
        await place.count_all([(name, "api_calls", 17) for name in names])
        await place.count_all([(name, "llm_tokens", 2_001) for name in names[:6]])
        await forwarder.flush()
    ahead = place.at_stripe()
    await place.restore()
    # What the flusher does when it finds Redis ahead: everything is sent to the ledger again, and Stripe asked first.
    for shard in range(16):
        async with place.ledger.transaction() as tx:
            await distrust(tx, shard=shard)
    await place.count_again()
    await place.count_all([(name, "api_calls", 5) for name in names])
    await place.count_all([(name, "llm_tokens", 1) for name in names])
    fresh = place.forwarder()
    await fresh.flush()
    assert place.at_stripe() == ahead
    await place.advance(HOUR_S)
    for _ in range(3):
        await fresh.flush()
    await place.agree()
    assert await place.states() == {"delivered": len(await place.rows())}
    assert any(row["adopted"] for row in await place.rows())
    assert place.refusals() == []


async def test_usage_fifty_hours_late_leaves_the_invoice_alone_and_is_billed_once(place: Forwarding) -> None:
    start_s = place.now_s // HOUR_S * HOUR_S - 5 * DAY_S
    await place.tenants(["a"], anchor_s=start_s)
    api = place.api()
    await api.v1.customers.update_async(place.customers["a"], {"name": "a"})
    forwarder = place.forwarder()
    await place.count("a", 100)
    await forwarder.flush()
    ends_s = int((await place.rows())[0]["deadline"].timestamp()) - HOUR_S
    await place.to(ends_s + 50 * HOUR_S)
    invoiced = sum(
        Decimal(event["value"])
        for event in place.stripe.state("meter_events")["meter_events"]
        if start_s <= event["timestamp"] < ends_s
    )
    await place.count("a", 23, hour_s=ends_s - HOUR_S)
    for _ in range(3):
        await forwarder.flush()
        await place.advance(300)
    events = place.stripe.state("meter_events")["meter_events"]
    assert invoiced == 100
    assert sum(Decimal(event["value"]) for event in events if event["timestamp"] < ends_s) == 100
    assert [Decimal(event["value"]) for event in events if event["timestamp"] >= ends_s] == [23]
    await place.agree()


async def test_usage_fifty_hours_late_is_on_the_next_invoice_of_its_subscription(place: Forwarding) -> None:
    api = place.api()
    product = await api.v1.products.create_async({"name": "api calls"})
    price = await api.v1.prices.create_async(
        {
            "currency": "usd",
            "product": product.id,
            "unit_amount": 2,
            "recurring": {"interval": "month", "usage_type": "metered", "meter": place.meters["api_calls"]},
        }
    )
    await place.tenants(["a"], anchor_s=place.now_s)
    customer = place.customers["a"]
    card = await api.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer})
    await api.v1.customers.update_async(customer, {"invoice_settings": {"default_payment_method": card.id}})
    subscription = await api.v1.subscriptions.create_async({"customer": customer, "items": [{"price": price.id}]})
    anchor_s = int(subscription.billing_cycle_anchor)
    await place.sql("update tenants set anchor = to_timestamp($1)", anchor_s)

    async def billed() -> list[tuple[str, int, int]]:
        """Status, quantity and total of the invoices of ended periods, the oldest first."""
        found = (await api.v1.invoices.list_async({"customer": customer})).data
        told = [(str(one.status), sum(int(line.quantity or 0) for line in one.lines.data), one.total) for one in found]
        return [one for one in reversed(told) if one[1]]

    forwarder = place.forwarder()
    await place.advance(2 * HOUR_S)
    await place.count("a", 100)
    await forwarder.flush()
    ends_s = int((await place.rows())[0]["deadline"].timestamp()) - HOUR_S
    await place.to(ends_s + 50 * HOUR_S)
    first = await billed()
    assert first == [("paid", 100, 200)]
    await place.count("a", 23, hour_s=ends_s - HOUR_S, period_s=anchor_s)
    for _ in range(3):
        await forwarder.flush()
        await place.advance(300)
    await place.count("a", 5)
    await forwarder.flush()
    assert await billed() == first
    await place.advance(33 * DAY_S)
    assert await billed() == [*first, ("paid", 28, 56)]
    await place.agree()
