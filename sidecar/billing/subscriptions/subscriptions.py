"""Subscriptions as they are kept, and what they give their tenants.

Guarantees: what a later look at Stripe saw is never replaced by an earlier one; a tenant changes only when what billing
            gives it differs from what billing gave it last, so what an operator set by hand stays until then.
Gives up:   lifting a suspension that an operator set: only an operator does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from sidecar.billing import objects
from sidecar.billing.objects import StripeObject
from sidecar.billing.subscriptions.standing import ENDED, UNDECIDED, Standing, Subscription, decisive, standing
from sidecar.catalogue.model import Catalogue
from sidecar.ledger import tenants
from sidecar.ledger.transaction import Transaction

ACTOR = "stripe"
TOGETHER_S = 5  # items that come with their subscription are made a moment after it
BACKDATED_S = 35 * 86_400  # Stripe takes no meter event that is older
_MONTHS = {"month": 1, "year": 12}


class Item(Struct, frozen=True, kw_only=True):
    """One item: a price, of a plan, and of a metric when it is metered."""

    id: str
    plan: str
    metric: str
    price: str
    quantity: int = 0
    period_start_s: int = 0
    period_end_s: int = 0


class Kept(Struct, frozen=True):
    """A subscription with its items."""

    subscription: Subscription
    items: list[Item]


async def look(tx: Transaction) -> int:
    """A number for what is seen at Stripe from here on."""
    return int(await tx.value("next_look"))


async def lock(tx: Transaction, tenant: str) -> None:
    """Keep every other change of what billing gives the tenant out until the transaction ends.

    To be taken before anything is kept: rows kept first would share a lock on the tenant that two of them then want
    for themselves.
    """
    await tx.rows("lock_standing", tenant)


async def keep(tx: Transaction, tenant: str, raw: Mapping[str, Any], seen_by: int) -> bool:
    """Keep a subscription as Stripe answered; False when a later look saw it already."""
    found = [*_items(raw), *_next_items(raw)]
    ours = await objects.by_ids(tx, {str(item["price"]["id"]) for item in found})
    items = [_item(item, ours) for item in _items(raw)]
    subscription = _subscription(tenant, raw, items, _plan_of(_next_items(raw), ours))
    one = subscription
    kept = await tx.value(
        "put_subscription",
        one.id,
        one.tenant,
        one.customer,
        one.plan,
        one.status,
        seen_by,
        one.made_s,
        one.anchor_s,
        one.interval_months,
        one.currency,
        one.trial_end_s or None,
        one.cancel_at_s or None,
        one.cancel_at_period_end,
        one.ended_s or None,
        one.schedule or None,
        one.next_plan,
        one.ended_because,
        int(raw.get("trial_start") or 0) or None,
    )
    if not kept:
        return False
    if one.status not in ENDED:
        before = await tx.rows("subscription_items_of", one.id)
        since_s, exchanged = _items_since(raw, items, {row[0]: row[3] for row in before if row[2]})
        await tx.rows("raise_items_since", tenant, since_s or None, exchanged)
    await tx.rows("drop_subscription_items", one.id)
    await tx.rows(
        "put_subscription_items",
        one.id,
        tenant,
        [item.id for item in items],
        [item.plan for item in items],
        [item.metric for item in items],
        [item.price for item in items],
        [item.quantity or None for item in items],
        [item.period_start_s or None for item in items],
        [item.period_end_s or None for item in items],
    )
    return True


async def items_of(tx: Transaction, raw: Mapping[str, Any]) -> list[Item]:
    """The items of a subscription as Stripe answered, with their plans and metrics."""
    found = _items(raw)
    ours = await objects.by_ids(tx, {str(item["price"]["id"]) for item in found})
    return [_item(item, ours) for item in found]


async def tenant_of(tx: Transaction, subscription: str) -> str:
    """The tenant that a subscription was kept for; empty when it was never seen."""
    return str(await tx.value("tenant_of_subscription", subscription) or "")


async def bill_from_start(tx: Transaction, tenant: str, raw: Mapping[str, Any]) -> None:
    """Have usage billed from a subscription's start on, though its customer became known here only later."""
    if str(raw["status"]) not in UNDECIDED:
        await tx.rows("bill_from_hour_of", tenant, int(raw["created"]), BACKDATED_S)


async def end(tx: Transaction, seen_by: int, *, subscription: str = "", customer: str = "") -> list[str]:
    """End what is gone at Stripe: a subscription, or all of a customer; the ids of those that lived."""
    return [str(row[0]) for row in await tx.rows("end_subscriptions", subscription, customer, seen_by)]


async def of_tenant(tx: Transaction, tenant: str) -> list[Subscription]:
    """A tenant's subscriptions, the newest first."""
    names = Subscription.__struct_fields__
    return [Subscription(**dict(zip(names, row, strict=True))) for row in await tx.rows("subscriptions_of", tenant)]


async def current(tx: Transaction, tenant: str) -> Kept | None:
    """The subscription that counts, or the newest that is not paid for yet, with its items."""
    found = await of_tenant(tx, tenant)
    chosen = decisive(found) or next(iter(found), None)
    if chosen is None:
        return None
    rows = await tx.rows("subscription_items_of", chosen.id)
    return Kept(chosen, [Item(**dict(zip(Item.__struct_fields__, row, strict=True))) for row in rows])


async def settle(tx: Transaction, catalogue: Catalogue, tenant: str, now_s: int, *, actor: str = ACTOR) -> None:
    """Give the tenant what its subscriptions amount to now."""
    locked = await tx.row("lock_standing", tenant)
    if locked is None:
        return
    found = await of_tenant(tx, tenant)
    given = msgspec.json.decode(locked["standing"], type=Standing) if locked["standing"] else None
    wanted = standing(found, catalogue.plans, now_s)
    if wanted is None or wanted == given:
        return
    chosen = decisive(found)
    reason = f"{chosen.id} is {chosen.status}" if chosen is not None else ""
    before = await tenants.show(tx, tenant)
    plan = wanted.plan or before.plan
    if plan != before.plan or wanted.anchor_s != before.anchor_s:
        await tenants.change_plan(tx, tenant, plan, actor=actor, reason=reason, anchor_s=wanted.anchor_s)
    by_hand = before.status == "suspended" and (given is None or given.status != "suspended")
    if not by_hand:
        await tenants.set_status(tx, tenant, wanted.status, actor=actor, until_s=wanted.until_s, reason=reason)
    await tx.rows("write_standing", tenant, msgspec.json.encode(wanted).decode())


def _items_since(raw: Mapping[str, Any], items: list[Item], before: Mapping[str, str]) -> tuple[int, bool]:
    """When the newest metered item came that was not there from the start, and whether one has another price now.

    Stripe says of an item when it came, not when its price was exchanged. ``before``: prices of items known so far.
    """
    made = {str(item["id"]): int(item.get("created") or 0) for item in _items(raw)}
    together_s = int(raw["created"]) + TOGETHER_S
    metered = [item for item in items if item.metric]
    came = [made[item.id] for item in metered if made[item.id] > together_s or (before and item.id not in before)]
    return max(came, default=0), any(before.get(item.id, item.price) != item.price for item in metered)


def _subscription(tenant: str, raw: Mapping[str, Any], items: list[Item], next_plan: str) -> Subscription:
    recurring = [item["price"].get("recurring") or {} for item in _items(raw)]
    months = [_MONTHS.get(str(every.get("interval")), 1) * int(every.get("interval_count") or 1) for every in recurring]
    plan = _most_telling(items)
    return Subscription(
        id=str(raw["id"]),
        tenant=tenant,
        customer=named(raw.get("customer")),
        plan=plan or str((raw.get("metadata") or {}).get("plan") or ""),
        status=str(raw["status"]),
        made_s=int(raw["created"]),
        anchor_s=int(raw.get("billing_cycle_anchor") or raw["created"]),
        interval_months=max(months, default=1),
        currency=str(raw.get("currency") or ""),
        trial_end_s=int(raw.get("trial_end") or 0),
        cancel_at_s=int(raw.get("cancel_at") or 0),
        cancel_at_period_end=bool(raw.get("cancel_at_period_end")),
        ended_s=int(raw.get("ended_at") or 0),
        schedule=named(raw.get("schedule")),
        next_plan=next_plan if next_plan != plan else "",
        ended_because=str((raw.get("cancellation_details") or {}).get("reason") or ""),
    )


def _item(raw: Mapping[str, Any], ours: Mapping[str, StripeObject]) -> Item:
    price = raw["price"]
    known = ours.get(str(price["id"]))
    metadata = price.get("metadata") or {}
    return Item(
        id=str(raw["id"]),
        plan=known.plan if known is not None else str(metadata.get("plan") or ""),
        metric=known.metric if known is not None else str(metadata.get("metric") or ""),
        price=str(price["id"]),
        quantity=int(raw.get("quantity") or 0),
        period_start_s=int(raw.get("current_period_start") or 0),
        period_end_s=int(raw.get("current_period_end") or 0),
    )


def _most_telling(items: Iterable[Item]) -> str:
    """The plan of a base price; without one the plan of most metered prices."""
    plans = [item.plan for item in items if item.plan and not item.metric]
    plans = plans or sorted(item.plan for item in items if item.plan)
    return max(plans, key=plans.count, default="")


def _items(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((raw.get("items") or {}).get("data") or ())


def _next_items(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Items of the phase that a schedule changes to, as those of a subscription."""
    schedule = raw.get("schedule")
    phases = schedule.get("phases") or [] if isinstance(schedule, dict) else []
    running = schedule.get("current_phase") or {} if isinstance(schedule, dict) else {}
    coming = [phase for phase in phases if phase["start_date"] >= int(running.get("end_date") or 0) > 0]
    first: Mapping[str, Any] = min(coming, key=lambda phase: int(phase["start_date"]), default={})
    return [{"id": "", "price": {"id": named(item["price"])}} for item in first.get("items") or ()]


def _plan_of(items: Iterable[Mapping[str, Any]], ours: Mapping[str, StripeObject]) -> str:
    return _most_telling(_item(item, ours) for item in items)


def named(reference: object) -> str:
    """The id of what a field refers to, expanded or not; empty for nothing."""
    if isinstance(reference, dict):
        return str(reference.get("id") or "")
    return str(reference or "")
