"""Subscribing, changing, cancelling: against the stand-in, whose answers and webhooks are Stripe's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.billing import customers
from sidecar.billing.subscriptions import checkout, invoices, subscriptions
from sidecar.billing.subscriptions.subscribing import Wish
from sidecar.billing.subscriptions.subscriptions import Kept
from sidecar.errors import Conflict, NotFound, StripeRefused, StripeUnavailable
from sidecar.ledger import audit, tenants
from tests.servers.subscribed import ACTOR, DAY_S, Bench, subscribed


@pytest.fixture
async def bench(database: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with subscribed(database, tmp_path) as opened:
        yield opened


async def test_a_subscription_has_the_base_price_and_a_price_for_each_metric_and_is_in_force_at_once(
    bench: Bench,
) -> None:
    await bench.customer()
    kept = await bench.subscribe()
    assert (kept.subscription.status, kept.subscription.plan) == ("active", "standard")
    assert [(item.plan, item.metric, item.quantity) for item in kept.items] == [
        ("standard", "", 1),
        ("standard", "calls", 0),
        ("standard", "jobs", 0),
    ]
    assert await bench.tenant() == ("standard", "active")
    async with bench.ledger.transaction() as tx:
        row = await tenants.show(tx, "acme")
        assert row.anchor_s == kept.subscription.anchor_s == (await bench.at_stripe(kept))["billing_cycle_anchor"]
        changes = [(one.from_plan, one.to_plan, one.actor) for one in await tenants.plan_changes(tx, "acme")]
        actions = [entry.action for entry in await audit.read(tx, tenant="acme")]
    assert changes == [("free", "standard", ACTOR)]
    assert {"billing.subscribe", "billing.customer", "tenant.plan"} <= set(actions)
    await bench.hear()
    async with bench.ledger.transaction() as tx:
        found = await invoices.of_tenant(tx, "acme")
    assert [(one.status, int(one.total), one.currency) for one in found] == [("paid", 9900, "usd")]
    assert found[0].lines[0].amount == 9900
    assert found[0].hosted_url.startswith("http")


async def test_a_tenant_has_one_customer_and_one_living_subscription(bench: Bench) -> None:
    await bench.customer()
    results = await asyncio.gather(*(bench.subscribe() for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(one, Kept) for one in results) == 1
    assert sum(isinstance(one, Conflict) for one in results) == 3
    with pytest.raises(Conflict, match="has the subscription"):
        await bench.subscribe("big")
    with pytest.raises(NotFound, match="no tenant"):
        await bench.subscribe(tenant="nobody")
    with pytest.raises(NotFound, match="did you mean"):
        await bench.subscribing.change("acme", "standart", actor=ACTOR)
    assert len(bench.stripe.state("customers")["customers"]) == 1


async def test_annual_prices_and_currencies_come_from_the_catalogue(bench: Bench) -> None:
    await bench.customer()
    kept = await bench.subscribe(annual=True, currency="eur")
    found = await bench.at_stripe(kept)
    assert found["currency"] == "eur"
    base = next(item for item in found["items"]["data"] if item["price"]["recurring"]["usage_type"] == "licensed")
    assert base["price"]["recurring"]["interval"] == "year"
    assert kept.subscription.interval_months == 12
    with pytest.raises(NotFound, match="no annual price"):
        await bench.subscribing.change("acme", "big", annual=True, actor=ACTOR)
    with pytest.raises(NotFound, match="no prices in"):
        await bench.subscribing.terms(Wish(plan="standard", currency="gbp"), "acme")


async def test_a_trial_without_a_card_is_paused_at_its_end(bench: Bench) -> None:
    await bench.customer(card="")
    kept = await bench.subscribe("big")
    assert kept.subscription.status == "trialing"
    assert kept.subscription.trial_end_s == kept.subscription.made_s + 14 * DAY_S
    assert await bench.tenant() == ("big", "trialing")
    await bench.advance("12d")
    async with bench.ledger.transaction() as tx:
        actions = [entry.action for entry in await audit.read(tx, tenant="acme")]
    assert actions.count("stripe.customer.subscription.trial_will_end") == 1
    await bench.advance("3d")
    assert await bench.tenant() == ("big", "paused")


async def test_a_plan_changes_at_once_and_usage_until_then_is_sent_first(bench: Bench) -> None:
    await bench.customer()
    await bench.subscribe()
    await bench.advance("10d")
    kept = await bench.subscribing.change("acme", "big", actor=ACTOR)
    assert bench.flushed == ["acme"]
    assert {item.plan for item in kept.items} == {"big"}
    assert len(kept.items) == 3
    assert await bench.tenant() == ("big", "active")
    await bench.advance("21d")
    async with bench.ledger.transaction() as tx:
        found = await invoices.of_tenant(tx, "acme")
    prorated = [line.amount for one in found for line in one.lines if line.proration]
    assert min(prorated) < 0 < max(prorated), "the old plan is credited, the new one charged"


@pytest.mark.parametrize("proration", ["create_prorations", "always_invoice", "none"])
async def test_usage_until_a_change_is_billed_by_the_old_prices_whatever_the_proration(
    bench: Bench, proration: Any
) -> None:
    customer = await bench.customer()
    await bench.subscribe()
    await bench.advance("2d")
    payload = {"stripe_customer_id": customer, "value": "150"}
    await bench.api.v1.billing.meter_events.create_async({"event_name": "quota_calls", "payload": payload})
    await bench.advance("1d")
    await bench.subscribing.change("acme", "big", proration=proration, actor=ACTOR)
    await bench.advance("28d")
    async with bench.ledger.transaction() as tx:
        found = await invoices.of_tenant(tx, "acme")
    lines = [line for one in found for line in one.lines]
    assert sum(line.amount for line in lines if line.metric == "calls") == 50, "50 calls beyond the 100 included"
    flat = [line.amount for line in lines if not line.metric and line.proration]
    assert bool(flat) is (proration != "none")


async def test_a_change_waits_for_the_end_of_the_period_and_can_be_taken_back(bench: Bench) -> None:
    await bench.customer()
    await bench.subscribe()
    kept = await bench.subscribing.change("acme", "big", when="period_end", actor=ACTOR)
    assert (kept.subscription.plan, kept.subscription.next_plan) == ("standard", "big")
    assert kept.subscription.schedule
    assert await bench.tenant() == ("standard", "active")
    again = await bench.subscribing.go_on("acme", actor=ACTOR)
    assert (again.subscription.plan, again.subscription.next_plan, again.subscription.schedule) == ("standard", "", "")
    await bench.subscribing.change("acme", "big", when="period_end", actor=ACTOR)
    await bench.advance("32d")
    assert await bench.tenant() == ("big", "active")
    async with bench.ledger.transaction() as tx:
        found = await subscriptions.current(tx, "acme")
        assert found is not None
        assert {item.plan for item in found.items} == {"big"}
        assert not any(line.proration for one in await invoices.of_tenant(tx, "acme") for line in one.lines)


async def test_a_cancellation_waits_for_the_end_of_the_period_and_can_be_taken_back(bench: Bench) -> None:
    await bench.customer()
    await bench.subscribe()
    kept = await bench.subscribing.cancel("acme", actor=ACTOR)
    assert kept.subscription.cancel_at_period_end
    assert await bench.tenant() == ("standard", "active")
    assert not (await bench.subscribing.go_on("acme", actor=ACTOR)).subscription.cancel_at_period_end
    await bench.subscribing.cancel("acme", actor=ACTOR)
    await bench.advance("32d")
    assert await bench.tenant() == ("standard", "cancelled")
    with pytest.raises(NotFound, match="no subscription"):
        await bench.subscribing.cancel("acme", actor=ACTOR)
    await bench.subscribe("big", trial_days=0)
    assert await bench.tenant() == ("big", "active")


async def test_a_cancellation_at_once_invoices_the_last_usage(bench: Bench) -> None:
    customer = await bench.customer()
    await bench.subscribe()
    await bench.advance("2d")
    payload = {"stripe_customer_id": customer, "value": "130"}
    await bench.api.v1.billing.meter_events.create_async({"event_name": "quota_calls", "payload": payload})
    await bench.advance("1d")
    kept = await bench.subscribing.cancel("acme", when="now", proration="none", actor=ACTOR)
    assert bench.flushed == ["acme"]
    assert kept.subscription.status == "canceled"
    assert await bench.tenant() == ("standard", "cancelled")
    await bench.hear()
    async with bench.ledger.transaction() as tx:
        found = await invoices.of_tenant(tx, "acme")
    assert [one.total for one in found] == [30, 9900]


async def test_nothing_changes_while_usage_cannot_be_sent_unless_it_is_forced(bench: Bench) -> None:
    await bench.customer()
    kept = await bench.subscribe()
    bench.left = 3
    for attempt in (
        bench.subscribing.cancel("acme", when="now", actor=ACTOR),
        bench.subscribing.change("acme", "big", actor=ACTOR),
    ):
        with pytest.raises(StripeUnavailable, match="3 deltas"):
            await attempt
    assert (await bench.at_stripe(kept))["status"] == "active"
    assert (await bench.subscribing.cancel("acme", when="now", force=True, actor=ACTOR)).subscription.ended_s


async def test_a_failed_payment_begins_a_grace_and_paying_ends_it(bench: Bench) -> None:
    customer = await bench.customer()
    kept = await bench.subscribe()
    await asyncio.to_thread(bench.stripe.options, payments={customer: "failed"}, payment_attempts_max=4)
    await bench.renew(kept)
    assert await bench.tenant() == ("standard", "past_due")
    async with bench.ledger.transaction() as tx:
        row = await tenants.show(tx, "acme")
        owed = (await invoices.of_tenant(tx, "acme", status="open"))[0]
        actions = [entry.action for entry in await audit.read(tx, tenant="acme")]
    assert "stripe.invoice.payment_failed" in actions
    assert row.status_until_s > bench.clock.wall_s()
    await asyncio.to_thread(bench.stripe.options, payments={})
    await bench.api.v1.invoices.pay_async(owed.id)
    await bench.hear()
    assert await bench.tenant() == ("standard", "active")


async def test_a_failed_payment_that_stays_failed_ends_in_unpaid(bench: Bench) -> None:
    customer = await bench.customer()
    await bench.subscribe()
    await asyncio.to_thread(bench.stripe.options, payments={customer: "failed"}, exhausted="unpaid")
    await bench.advance("45d")
    assert await bench.tenant() == ("standard", "unpaid")


async def test_who_was_away_for_longer_than_stripe_repeats_news_finds_out_all_the_same(bench: Bench) -> None:
    await bench.customer()
    kept = await bench.subscribe()
    await bench.hear()
    await asyncio.to_thread(bench.stripe.faults, {"kind": "webhook_never"})
    await bench.api.v1.subscriptions.cancel_async(kept.subscription.id)
    await bench.advance("1d")
    await bench.advance("1h")
    assert await bench.tenant() == ("standard", "active")
    assert await bench.mirror.look_again() == 1
    assert await bench.tenant() == ("standard", "cancelled")
    assert await bench.mirror.look_again() == 0


async def test_news_of_one_tenant_at_once_do_not_block_each_other(bench: Bench) -> None:
    await bench.customer()
    kept = await bench.subscribe()
    await bench.hear()
    name = kept.subscription.id
    async with bench.ledger.transaction() as tx:
        invoice = (await invoices.of_tenant(tx, "acme"))[0].id
    for number in range(5):
        # Every round changes the tenant, whoever comes first.
        async with bench.ledger.transaction() as tx:
            await tx._connection.execute("update billing_customers set standing = null")
            await tenants.change_plan(tx, "acme", "free", actor=ACTOR, reason=f"round {number}")
        looks = [bench.mirror.subscription(name), bench.mirror.invoice(invoice)] * 2
        assert await asyncio.gather(*looks) == [True] * 4
        assert await bench.tenant() == ("standard", "active")


async def test_checkout_subscribes_when_it_is_completed_and_not_before(bench: Bench) -> None:
    async with bench.ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor=ACTOR)
    page = await checkout.checkout(
        bench.mirror,
        bench.subscribing,
        "acme",
        Wish(plan="standard"),
        success_url="https://app.test/ok",
        cancel_url="https://app.test/no",
        actor=ACTOR,
    )
    assert page.url.startswith("https://")
    await bench.hear()
    assert await bench.tenant() == ("free", "active")
    await asyncio.to_thread(bench.stripe.check_out, page.id)
    await bench.hear()
    assert await bench.tenant() == ("standard", "active")
    with pytest.raises(Conflict):
        await checkout.checkout(
            bench.mirror,
            bench.subscribing,
            "acme",
            Wish(plan="big"),
            success_url="https://app.test/ok",
            cancel_url="https://app.test/no",
            actor=ACTOR,
        )
    page = await checkout.portal(bench.mirror, "acme", return_url="https://app.test")
    assert page.url.startswith("https://")
    await checkout.portal(bench.mirror, "acme")
    told = bench.stripe.state("portal_sessions", "portal_configurations")
    (may,) = told["portal_configurations"]
    assert {one["configuration"] for one in told["portal_sessions"]} == {may["id"]}
    # Whoever changes a plan or ends it at once leaves usage behind that Stripe does not have yet.
    assert not may["features"]["subscription_update"]["enabled"]
    assert may["features"]["subscription_cancel"] == {"enabled": True, "mode": "at_period_end"}
    async with bench.ledger.transaction() as tx:
        customer = (await customers.of_tenant(tx, "acme")).customer
    method = await customers.payment_method(bench.api, customer)
    assert method is not None
    assert (method.type, method.brand, method.last4) == ("card", "visa", "4242")


async def test_a_customer_of_stripe_is_adopted_with_its_subscriptions(bench: Bench) -> None:
    async with bench.ledger.transaction() as tx:
        await tenants.put(tx, "acme", plan="free", actor=ACTOR)
        await tenants.put(tx, "other", plan="free", actor=ACTOR)
    made = await bench.api.v1.customers.create_async({"email": "old@example.test"})
    async with customers.one_change(bench.ledger, "acme"):
        adopted = await customers.adopt(bench.ledger, bench.api, "acme", made.id, actor=ACTOR)
        again = await customers.adopt(bench.ledger, bench.api, "acme", made.id, actor=ACTOR)
    assert adopted == again
    assert (await bench.api.v1.customers.retrieve_async(made.id)).to_dict()["metadata"] == {"tenant": "acme"}
    with pytest.raises(Conflict):
        await customers.adopt(bench.ledger, bench.api, "other", made.id, actor=ACTOR)
    with pytest.raises(NotFound):
        await customers.adopt(bench.ledger, bench.api, "other", "cus_nobody", actor=ACTOR)


async def test_a_customer_linked_twice_at_the_same_moment_is_linked(bench: Bench) -> None:
    """By the call that made it, and by the webhook that tells of it."""
    for number in range(10):
        async with bench.ledger.transaction() as tx:
            await tenants.put(tx, f"t{number}", plan="free", actor=ACTOR)

        async def link(tenant: str) -> None:
            async with bench.ledger.transaction() as tx:
                await customers.link(tx, tenant, f"cus_{tenant}", actor=ACTOR)

        await asyncio.gather(*(link(f"t{number}") for _ in range(4)))


async def test_a_subscription_made_behind_our_back_counts_too(bench: Bench) -> None:
    """As one made in the dashboard: its webhooks tell."""
    customer = await bench.customer()
    async with bench.ledger.transaction() as tx:
        await tenants.put(tx, "other", plan="free", actor=ACTOR)
    kept = await bench.subscribe()
    prices: Any = [{"price": item.price, **({"quantity": 1} if item.quantity else {})} for item in kept.items]
    await bench.subscribing.cancel("acme", when="now", actor=ACTOR)
    await bench.api.v1.subscriptions.create_async({"customer": customer, "items": prices})
    await bench.hear()
    assert await bench.tenant() == ("standard", "active")


async def test_a_refused_card_changes_nothing_here(bench: Bench) -> None:
    await bench.customer(card="pm_card_chargeCustomerFail")
    kept = await bench.subscribe()
    assert kept.subscription.status == "incomplete"
    assert await bench.tenant() == ("free", "active")
    await bench.customer("other", card="")
    with pytest.raises(StripeRefused, match="no attached payment source"):
        await bench.subscribe(tenant="other")
    assert await bench.tenant("other") == ("free", "active")
    # The tenant is free for another try.
    invoiced = await bench.subscribe(tenant="other", days_until_due=14)
    assert invoiced.subscription.status == "active"


async def test_a_call_whose_answer_was_lost_is_told_and_its_effect_is_found(bench: Bench) -> None:
    await bench.customer()
    rule = {"path": "/v1/subscriptions", "method": "POST", "kind": "error_after", "count": 1}
    await asyncio.to_thread(bench.stripe.faults, rule)
    with pytest.raises(StripeUnavailable):
        await bench.subscribe()
    await bench.hear()
    assert await bench.tenant() == ("standard", "active")
    # Who heard nothing of it and asks for the same again is told of it; it is no second one.
    assert (await bench.subscribe()).subscription.status == "active"
    assert len(bench.stripe.state("subscriptions")["subscriptions"]) == 1
    with pytest.raises(Conflict, match="has the subscription"):
        await bench.subscribe()


async def test_a_subscription_whose_answer_was_lost_is_no_second_one_though_its_news_never_come(bench: Bench) -> None:
    await bench.customer()
    await bench.hear()
    await asyncio.to_thread(bench.stripe.faults, {"kind": "webhook_never"})
    rule = {"path": "/v1/subscriptions", "method": "POST", "kind": "cut_after", "count": 1}
    await asyncio.to_thread(bench.stripe.faults, rule)
    with pytest.raises(StripeUnavailable):
        await bench.subscribe()
    assert await bench.tenant() == ("free", "active")
    with pytest.raises(Conflict, match="has the subscription"):
        await bench.subscribe("big")
    assert await bench.tenant() == ("standard", "active"), "what is there was kept"
    assert len(bench.stripe.state("subscriptions")["subscriptions"]) == 1


async def test_a_try_that_cannot_see_the_first_one_yet_makes_the_same_subscription(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call may still be under way at Stripe when somebody tries again."""
    await bench.customer()
    await asyncio.to_thread(bench.stripe.faults, {"kind": "webhook_never"})
    rule = {"path": "/v1/subscriptions", "method": "POST", "kind": "cut_after", "count": 1}
    await asyncio.to_thread(bench.stripe.faults, rule)
    with pytest.raises(StripeUnavailable):
        await bench.subscribe()

    async def nothing(_: str) -> list[dict[str, Any]]:
        return []

    with monkeypatch.context() as patch:
        patch.setattr(bench.mirror, "listed", nothing)
        kept = await bench.subscribe()
    assert len(bench.stripe.state("subscriptions")["subscriptions"]) == 1
    # The same wish after that one has ended is a new wish.
    await bench.subscribing.cancel("acme", when="now", actor=ACTOR)
    assert (await bench.subscribe()).subscription.id != kept.subscription.id


async def test_a_refusal_that_stripe_keeps_does_not_hold_for_the_next_try(bench: Bench) -> None:
    customer = await bench.customer(card="")
    for _ in range(3):
        with pytest.raises(StripeRefused, match="no attached payment source"):
            await bench.subscribe()
    method = await bench.api.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer})
    await bench.api.v1.customers.update_async(customer, {"invoice_settings": {"default_payment_method": method.id}})
    assert (await bench.subscribe()).subscription.status == "active"


async def page(bench: Bench, plan: str = "standard") -> str:
    made = await checkout.checkout(
        bench.mirror,
        bench.subscribing,
        "acme",
        Wish(plan=plan),
        success_url="https://app.test/ok",
        cancel_url="https://app.test/no",
        actor=ACTOR,
    )
    return made.id


async def sessions(bench: Bench) -> dict[str, str]:
    found = await bench.api.v1.checkout.sessions.list_async({})
    return {one.id: str(one.status) for one in found.data}


async def test_a_tenant_has_one_open_page_of_checkout_and_none_once_it_is_subscribed(bench: Bench) -> None:
    await bench.customer()
    first, second = await page(bench), await page(bench, "big")
    assert await sessions(bench) == {first: "expired", second: "open"}
    await bench.subscribe()
    assert await sessions(bench) == {first: "expired", second: "expired"}


async def test_a_page_that_was_completed_unheard_allows_no_other(bench: Bench) -> None:
    await bench.customer()
    first = await page(bench)
    await bench.hear()
    await asyncio.to_thread(bench.stripe.faults, {"kind": "webhook_never"})
    await asyncio.to_thread(bench.stripe.check_out, first)
    with pytest.raises(Conflict, match="has the subscription"):
        await page(bench)
    assert await bench.tenant() == ("standard", "active")


async def test_of_a_tenant_and_its_parents_one_pays(bench: Bench) -> None:
    """What a tenant uses counts for its parents as well; two customers would pay for it twice."""
    await bench.customer("firm")
    async with bench.ledger.transaction() as tx:
        await tenants.put(tx, "team", plan="free", parent="firm", actor=ACTOR)
        await tenants.put(tx, "person", plan="free", parent="team", actor=ACTOR)
        await tenants.put(tx, "other", plan="free", actor=ACTOR)
    for name in ("person", "team"):
        with pytest.raises(Conflict, match="'firm' is billed"):
            await bench.subscribe(tenant=name)
    await bench.customer("other")
    with pytest.raises(Conflict, match="would both pay"):
        async with bench.ledger.transaction() as tx:
            await tenants.put(tx, "other", plan="free", parent="firm", actor=ACTOR)
    with pytest.raises(Conflict, match="would both pay"):
        async with bench.ledger.transaction() as tx:
            await tenants.put(tx, "firm", plan="free", parent="other", actor=ACTOR)
    async with bench.ledger.transaction() as tx:
        await tenants.put(tx, "person", plan="free", parent="other", actor=ACTOR)
        await tenants.put(tx, "other", plan="free", parent="", actor=ACTOR)
    above = await bench.subscribe(tenant="firm")
    assert above.subscription.status == "active"
    with pytest.raises(Conflict, match="'other' is billed"):
        await bench.subscribe(tenant="person")
