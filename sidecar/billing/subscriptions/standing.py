"""What a tenant's subscriptions mean for it: plan, status, until when, and where its billing periods start. Pure.

Guarantees: the answer follows from what is stored alone, so the order in which news came does not matter.
Gives up:   subscriptions whose first payment is not made yet (incomplete): they neither give nor take anything.
Source: https://docs.stripe.com/api/subscriptions/object, the field ``status``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from sidecar.catalogue.model import Plan

DAY_S = 86_400
# Stripe moves a subscription out of its trial at the end of it; its webhook needs a moment to get here.
TRIAL_SLACK_S = 300
UNDECIDED = ("incomplete", "incomplete_expired")
ENDED = ("canceled", "incomplete_expired")
_PLAIN = {"active": "active", "canceled": "cancelled", "paused": "paused"}


class Subscription(Struct, frozen=True, kw_only=True):
    """One subscription as it is kept. ``status`` is Stripe's word; times of 0 are none.

    ``owed_since_s`` is since when its oldest open invoice is due, ``period_start_s`` the start of its running period.
    """

    id: str
    tenant: str
    customer: str
    plan: str
    status: str
    made_s: int
    anchor_s: int
    interval_months: int = 1
    currency: str = ""
    trial_end_s: int = 0
    cancel_at_s: int = 0
    cancel_at_period_end: bool = False
    ended_s: int = 0
    schedule: str = ""
    next_plan: str = ""
    ended_because: str = ""
    owed_since_s: int = 0
    period_start_s: int = 0


class Standing(Struct, frozen=True, kw_only=True):
    """What billing gives a tenant. An empty ``plan`` leaves the tenant's; ``until_s`` 0 has no end."""

    plan: str
    status: str
    until_s: int = 0
    anchor_s: int = 0


def living(found: Sequence[Subscription]) -> list[Subscription]:
    """Those that were paid for (or are tried out) and have not ended; more than one is one too many."""
    return [one for one in found if one.status not in (*UNDECIDED, *ENDED)]


def decisive(found: Sequence[Subscription]) -> Subscription | None:
    """The subscription that counts: the newest living one, else the newest; None while nothing was ever paid for."""
    decided = [one for one in found if one.status not in UNDECIDED]
    return max(living(found) or decided, key=lambda one: (one.made_s, one.id), default=None)


def standing(found: Sequence[Subscription], plans: Mapping[str, Plan], now_s: int) -> Standing | None:
    """What the subscriptions of one tenant amount to now; None leaves the tenant as it is."""
    chosen = decisive(found)
    if chosen is None:
        return None
    # A price that no plan of the catalogue has any more leaves the tenant on what it has.
    plan = plans.get(chosen.plan)
    kept = chosen.plan if plan is not None else ""
    until_s = 0
    match chosen.status:
        case "past_due" if now_s < (until_s := _grace_end_s(chosen, plan)):
            status = "past_due"
        case "past_due":
            return _fallen(chosen, plan, "suspended")
        case "unpaid":
            return _fallen(chosen, plan, "unpaid")
        case "canceled" if chosen.ended_because == "payment_failed":
            return _fallen(chosen, plan, "cancelled")
        case "trialing":
            status = "trialing"
            until_s = chosen.trial_end_s + TRIAL_SLACK_S if chosen.trial_end_s else 0
        case _ if chosen.status in _PLAIN:
            status = _PLAIN[chosen.status]
        case _:
            # A word that Stripe did not have when this was written: nobody is cut off by a guess.
            return None
    return Standing(plan=kept, status=status, until_s=until_s, anchor_s=chosen.anchor_s)


def _grace_end_s(chosen: Subscription, plan: Plan | None) -> int:
    since_s = chosen.owed_since_s or chosen.period_start_s
    return since_s + (plan.past_due_grace_days if plan is not None else 0) * DAY_S


def _fallen(chosen: Subscription, plan: Plan | None, status: str) -> Standing:
    """After the grace: the plan that the catalogue names for it, else no access."""
    if plan is not None and plan.past_due_plan:
        return Standing(plan=plan.past_due_plan, status="active", anchor_s=chosen.anchor_s)
    return Standing(plan=plan.name if plan is not None else "", status=status, anchor_s=chosen.anchor_s)
