"""What the stand-in bills: tiers, rounding, periods, and what payments do to subscriptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sidecar.billing.stripe_api import StripeApi
from tests.servers.stripe import Stripe
from tests.servers.stripe_shop import Shop, open_shop


@pytest.fixture
async def shop(stripe: Stripe) -> AsyncIterator[Shop]:
    api = StripeApi.open(stripe.key, stripe.url)
    yield await open_shop(api)
    await api.close()


async def invoices(shop: Shop, subscription: str) -> list[Any]:
    """All invoices, newest first."""
    found = await shop.api.v1.invoices.list_async({"subscription": subscription, "limit": 100})
    return [invoice.to_dict() for invoice in found.data]


async def status_of(shop: Shop, subscription: str) -> str:
    return str((await shop.api.v1.subscriptions.retrieve_async(subscription)).status)


def to_period_end(stripe: Stripe, subscription: Any) -> None:
    now = stripe.state("now")["now"]
    stripe.advance(f"{max(subscription['items']['data'][0]['current_period_end'] - now, 0) + 1}s")


USED = {
    "llm_tokens": "1500000",
    "agent_executions": "5500",
    "api_calls": "120000",
    "storage_gb": "105",
    "user_seats": "27",
}


async def test_standard_with_overage_costs_186_50(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer()
    subscription = await shop.subscribe(customer)
    first = (await invoices(shop, subscription["id"]))[0]
    assert (first["amount_paid"], first["billing_reason"], first["status"]) == (9_900, "subscription_create", "paid")
    for metric, value in USED.items():
        await shop.use(customer, metric, value)
    preview = await shop.api.v1.invoices.create_preview_async({"subscription": subscription["id"]})
    assert preview.total == 18_650

    to_period_end(stripe, subscription)
    draft = (await invoices(shop, subscription["id"]))[0]
    assert (draft["status"], draft["total"]) == ("draft", 18_650)
    assert draft["parent"]["subscription_details"]["subscription"] == subscription["id"]

    stripe.advance("1h")
    final = (await invoices(shop, subscription["id"]))[0]
    assert (final["id"], final["status"], final["total"]) == (draft["id"], "paid", 18_650)
    assert final["hosted_invoice_url"]
    assert final["invoice_pdf"]
    amounts: dict[str, int] = {}
    for line in final["lines"]["data"]:
        price = line["pricing"]["price_details"]["price"]
        amounts[price] = amounts.get(price, 0) + line["amount"]
    assert amounts == {
        shop.base: 9_900,
        shop.prices["llm_tokens"]: 500,
        shop.prices["agent_executions"]: 5_000,
        shop.prices["api_calls"]: 2_000,
        shop.prices["storage_gb"]: 250,
        shop.prices["user_seats"]: 1_000,
    }


@pytest.mark.parametrize(
    ("metric", "value", "cents"),
    [
        ("llm_tokens", "1000000", 0),  # exactly what is included
        ("llm_tokens", "1000001", 0),  # 0.001 cents
        ("llm_tokens", "1000499", 0),  # 0.499 cents
        ("llm_tokens", "1000500", 1),  # half a cent rounds up
        ("llm_tokens", "1001499", 1),
        ("llm_tokens", "1001500", 2),
        ("api_calls", "100004", 0),  # 0.4 cents
        ("api_calls", "100005", 1),
        ("user_seats", "25", 0),
        ("user_seats", "26", 500),
        ("agent_executions", "5000.5", 5),  # half a unit
        ("storage_gb", "-3", 0),  # less than nothing is nothing
    ],
)
async def test_boundary_amounts_round_half_up_once_a_line(
    stripe: Stripe, shop: Shop, metric: str, value: str, cents: int
) -> None:
    customer = await shop.customer()
    subscription = await shop.subscribe(customer)
    await shop.use(customer, metric, value)
    preview = await shop.api.v1.invoices.create_preview_async({"subscription": subscription["id"]})
    assert preview.total == 9_900 + cents


async def test_usage_of_a_period_counts_until_its_invoice_is_final_and_never_after(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer()
    subscription = await shop.subscribe(customer)
    end = subscription["items"]["data"][0]["current_period_end"]
    to_period_end(stripe, subscription)
    await shop.use(customer, "user_seats", "26", timestamp=end - 1)
    await shop.use(customer, "user_seats", "30", timestamp=end)  # the next period's
    stripe.advance("59m")
    assert (await invoices(shop, subscription["id"]))[0]["total"] == 9_900 + 500
    stripe.advance("2m")
    await shop.use(customer, "user_seats", "100", timestamp=end - 1)
    final = (await invoices(shop, subscription["id"]))[0]
    assert (final["status"], final["total"]) == ("paid", 9_900 + 500)


async def test_a_jump_over_three_periods_makes_three_invoices(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer()
    subscription = await shop.subscribe(customer)
    await shop.use(customer, "user_seats", "26")
    stripe.advance("93d")
    found = await invoices(shop, subscription["id"])
    assert [invoice["total"] for invoice in found] == [9_900, 9_900, 10_400, 9_900]
    assert [invoice["period_start"] for invoice in found[:-1]] == [invoice["period_end"] for invoice in found[1:]]
    now = stripe.state("now")["now"]
    item = (await shop.api.v1.subscriptions.retrieve_async(subscription["id"])).to_dict()["items"]["data"][0]
    assert item["current_period_start"] <= now < item["current_period_end"]


async def test_failed_payments_lead_to_past_due_then_unpaid_and_paying_leads_back(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer()
    subscription = await shop.subscribe(customer)
    stripe.options(payments={customer: "failed"})
    to_period_end(stripe, subscription)
    stripe.advance("1h")
    assert await status_of(shop, subscription["id"]) == "past_due"
    stripe.advance("4d")
    assert await status_of(shop, subscription["id"]) == "unpaid"
    invoice = (await invoices(shop, subscription["id"]))[0]
    assert (invoice["status"], invoice["attempt_count"]) == ("open", 4)
    stripe.options(payments={})
    paid = await shop.api.v1.invoices.pay_async(invoice["id"])
    assert paid.status == "paid"
    assert await status_of(shop, subscription["id"]) == "active"


async def test_a_first_payment_that_fails_leaves_it_incomplete_and_then_expired(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer("pm_card_chargeCustomerFail")
    subscription = await shop.subscribe(customer)
    assert subscription["status"] == "incomplete"
    stripe.advance("23h")
    assert await status_of(shop, subscription["id"]) == "incomplete_expired"


async def test_a_trial_bills_nothing_warns_and_ends(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer()
    subscription = await shop.subscribe(customer, trial_period_days=7)
    assert subscription["status"] == "trialing"
    await shop.use(customer, "user_seats", "100")
    stripe.advance("4d")
    types = [event["type"] for event in stripe.state("events")["events"]]
    assert types.count("customer.subscription.trial_will_end") == 1
    stripe.advance("3d")
    assert await status_of(shop, subscription["id"]) == "active"
    stripe.advance("1h")
    assert [(one["total"], one["status"]) for one in await invoices(shop, subscription["id"])] == [
        (9_900, "paid"),
        (0, "paid"),
    ]


async def test_a_trial_without_a_card_pauses_and_resumes(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer("")
    subscription = await shop.subscribe(
        customer, trial_period_days=7, trial_settings={"end_behavior": {"missing_payment_method": "pause"}}
    )
    stripe.advance("7d")
    assert await status_of(shop, subscription["id"]) == "paused"
    await shop.api.v1.customers.update_async(customer, {"invoice_settings": {"default_payment_method": "pm_card_visa"}})
    resumed = await shop.api.v1.subscriptions.resume_async(subscription["id"])
    assert resumed.status == "active"
    assert (await invoices(shop, subscription["id"]))[0]["amount_paid"] == 9_900


async def test_cancelling_at_the_end_bills_the_usage_and_at_once_only_when_asked(stripe: Stripe, shop: Shop) -> None:
    ids = {}
    for name in ("end", "now", "dropped"):
        customer = await shop.customer()
        ids[name] = (await shop.subscribe(customer))["id"]
        await shop.use(customer, "user_seats", "26")
    stripe.advance("1d")
    await shop.api.v1.subscriptions.update_async(ids["end"], {"cancel_at_period_end": True})
    await shop.api.v1.subscriptions.cancel_async(ids["now"], {"invoice_now": True})
    await shop.api.v1.subscriptions.cancel_async(ids["dropped"])
    stripe.advance("31d")
    totals = {name: [one["total"] for one in await invoices(shop, found)] for name, found in ids.items()}
    assert totals == {"end": [500, 9_900], "now": [500, 9_900], "dropped": [9_900]}
    assert {await status_of(shop, found) for found in ids.values()} == {"canceled"}


async def test_a_change_of_plan_prorates_by_the_second(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer()
    subscription = await shop.subscribe(customer)
    product = await shop.api.v1.products.create_async({"name": "Enterprise"})
    dearer = await shop.api.v1.prices.create_async(
        {"currency": "usd", "product": product.id, "unit_amount": 49_900, "recurring": {"interval": "month"}}
    )
    item = next(one for one in subscription["items"]["data"] if one["price"]["id"] == shop.base)
    length = item["current_period_end"] - item["current_period_start"]
    stripe.advance(f"{item['current_period_start'] + length // 2 - stripe.state('now')['now']}s")
    await shop.api.v1.subscriptions.update_async(
        subscription["id"],
        {"items": [{"id": item["id"], "price": dearer.id}], "proration_behavior": "always_invoice"},
    )
    charged = (await invoices(shop, subscription["id"]))[0]
    assert charged["billing_reason"] == "subscription_update"
    assert charged["status"] == "paid"
    assert abs(charged["total"] - (49_900 - 9_900) // 2) <= 1
    assert {line["parent"]["subscription_item_details"]["proration"] for line in charged["lines"]["data"]} == {True}


async def test_a_schedule_changes_the_plan_at_the_end_of_the_period(stripe: Stripe, shop: Shop) -> None:
    customer = await shop.customer()
    subscription = await shop.subscribe(customer)
    product = await shop.api.v1.products.create_async({"name": "Small"})
    cheaper = await shop.api.v1.prices.create_async(
        {"currency": "usd", "product": product.id, "unit_amount": 1_900, "recurring": {"interval": "month"}}
    )
    await shop.use(customer, "user_seats", "26")
    api = shop.api.v1.subscription_schedules
    schedule = (await api.create_async({"from_subscription": subscription["id"]})).to_dict()
    running = schedule["phases"][0]
    kept: Any = [
        {"price": item["price"], **({"quantity": item["quantity"]} if "quantity" in item else {})}
        for item in running["items"]
    ]
    await api.update_async(
        schedule["id"],
        {
            "end_behavior": "release",
            "phases": [
                {"items": kept, "start_date": running["start_date"], "end_date": running["end_date"]},
                {
                    "items": [{"price": cheaper.id, "quantity": 1}],
                    "proration_behavior": "none",
                    "metadata": {"plan": "small"},
                },
            ],
        },
    )
    to_period_end(stripe, subscription)
    stripe.advance("1h")
    # The usage of the old period by the old price, the new period by the new one.
    assert (await invoices(shop, subscription["id"]))[0]["total"] == 500 + 1_900
    changed = (await shop.api.v1.subscriptions.retrieve_async(subscription["id"])).to_dict()
    assert [item["price"]["id"] for item in changed["items"]["data"]] == [cheaper.id]
    assert changed["metadata"]["plan"] == "small"
    stripe.advance("32d")
    seen = (await shop.api.v1.subscriptions.retrieve_async(subscription["id"])).to_dict()
    assert seen["schedule"] is None
    assert (await api.retrieve_async(schedule["id"])).status == "released"


async def test_a_metered_item_that_goes_is_billed_only_with_prorations(stripe: Stripe, shop: Shop) -> None:
    totals = {}
    for proration in ("create_prorations", "none"):
        customer = await shop.customer()
        subscription = await shop.subscribe(customer)
        await shop.use(customer, "user_seats", "26")
        stripe.advance("1m")
        item = next(one for one in subscription["items"]["data"] if one["price"]["id"] == shop.prices["user_seats"])
        params: Any = {"items": [{"id": item["id"], "deleted": True}], "proration_behavior": proration}
        await shop.api.v1.subscriptions.update_async(subscription["id"], params)
        preview = await shop.api.v1.invoices.create_preview_async({"subscription": subscription["id"]})
        totals[proration] = preview.total
    assert totals == {"create_prorations": 10_400, "none": 9_900}


async def test_checkout_subscribes_when_a_person_completes_it(stripe: Stripe, shop: Shop) -> None:
    lines: Any = [{"price": shop.base, "quantity": 1}, {"price": shop.prices["api_calls"]}]
    session = await shop.api.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "line_items": lines,
            "success_url": "http://localhost/done",
            "client_reference_id": "tenant-1",
            "subscription_data": {"metadata": {"tenant": "tenant-1"}},
        }
    )
    assert session.status == "open"
    assert session.url
    stripe.check_out(session.id)
    done = (await shop.api.v1.checkout.sessions.retrieve_async(session.id, {"expand": ["subscription"]})).to_dict()
    assert (done["status"], done["payment_status"]) == ("complete", "paid")
    assert done["subscription"]["metadata"] == {"tenant": "tenant-1"}
    assert done["subscription"]["status"] == "active"
    methods = await shop.api.v1.customers.payment_methods.list_async(done["customer"])
    assert [method.to_dict()["card"]["last4"] for method in methods.data] == ["4242"]
    portal = await shop.api.v1.billing_portal.sessions.create_async({"customer": done["customer"]})
    assert portal.url


async def test_an_abandoned_checkout_expires(stripe: Stripe, shop: Shop) -> None:
    session = await shop.api.v1.checkout.sessions.create_async(
        {"mode": "subscription", "line_items": [{"price": shop.base, "quantity": 1}], "success_url": "http://localhost"}
    )
    stripe.advance("24h")
    assert (await shop.api.v1.checkout.sessions.retrieve_async(session.id)).status == "expired"


async def test_annual_and_monthly_items_have_their_own_periods(stripe: Stripe, shop: Shop) -> None:
    product = await shop.api.v1.products.create_async({"name": "Annual"})
    annual = await shop.api.v1.prices.create_async(
        {"currency": "usd", "product": product.id, "unit_amount": 99_000, "recurring": {"interval": "year"}}
    )
    customer = await shop.customer()
    items: Any = [{"price": annual.id, "quantity": 1}, {"price": shop.prices["user_seats"]}]
    subscription = (await shop.api.v1.subscriptions.create_async({"customer": customer, "items": items})).to_dict()
    await shop.use(customer, "user_seats", "26")
    stripe.advance("366d")
    totals = [invoice["total"] for invoice in await invoices(shop, subscription["id"])]
    assert totals == [99_000, *[0] * 10, 500, 99_000]
