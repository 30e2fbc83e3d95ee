"""Items of a subscription as Stripe's parameters: those of a new one, and what turns some into others. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.billing.objects import PlanPrices
from sidecar.billing.subscriptions.intentions import Wish
from sidecar.billing.subscriptions.subscriptions import Item, named


def new_items(prices: PlanPrices, wish: Wish) -> list[Any]:
    """The items of a subscription to a plan: its base price, if it has one, and a price for each metric."""
    chosen = prices.annual if wish.annual else prices.base
    base = [{"price": chosen, "quantity": 1}] if chosen else []
    return [*base, *({"price": price} for price in prices.metered.values())]


def exchanged(old: Sequence[Item], wanted: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Parameters that leave what stays, add what is new and delete the rest: of base prices, and of metered ones."""
    base = _exchanged([item for item in old if not item.metric], [one for one in wanted if "quantity" in one])
    metered = _exchanged([item for item in old if item.metric], [one for one in wanted if "quantity" not in one])
    return base, metered


def of_phase(items: Sequence[Item]) -> list[Any]:
    """Items as a phase of a schedule has them."""
    return [
        {"price": item.price} if item.metric else {"price": item.price, "quantity": item.quantity or 1}
        for item in items
    ]


def repriced(there: Sequence[Item], prices: Mapping[str, str]) -> list[Any]:
    """Items as a phase has them, with other prices of some metrics; all else stays as people agreed on it."""
    return [
        {"price": prices[item.metric]} if item.metric in prices else one
        for item, one in zip(there, of_phase(there), strict=True)
    ]


def comes(schedule: object) -> Mapping[str, Any]:
    """What a schedule changes a subscription to next, as a subscription would have it; empty when nothing waits."""
    waiting = coming(schedule) if isinstance(schedule, dict) else []
    if not waiting:
        return {}
    data = [
        {"id": "", "price": {"id": named(item["price"])}, "quantity": item.get("quantity")}
        for item in waiting[0].get("items") or ()
    ]
    return {"items": {"data": data}}


def coming(schedule: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The phases of a schedule that have not begun."""
    running = schedule.get("current_phase") or {}
    ends_s = int(running.get("end_date") or 0)
    phases = [phase for phase in schedule.get("phases") or () if int(phase["start_date"]) >= ends_s > 0]
    return sorted(phases, key=lambda phase: int(phase["start_date"]))


def is_phase(phase: Mapping[str, Any], wanted: Sequence[Any]) -> bool:
    """Whether a phase has exactly these items."""
    found = {named(item["price"]): int(item.get("quantity") or 0) for item in phase.get("items") or ()}
    return found == {str(item["price"]): int(item.get("quantity") or 0) for item in wanted}


def _exchanged(old: Sequence[Item], wanted: Sequence[Any]) -> list[Any]:
    present, prices = {item.price for item in old}, {item["price"] for item in wanted}
    added = [item for item in wanted if item["price"] not in present]
    return [*added, *({"id": item.id, "deleted": True} for item in old if item.price not in prices)]
