"""What time does to a subscription: trials end, periods end, what was scheduled happens.

Guarantees: every period end makes one invoice, also when the clock jumps over many of them.
Source: https://docs.stripe.com/billing/subscriptions/overview, https://docs.stripe.com/billing/subscriptions/trials
"""

from __future__ import annotations

from sidecar.embedded.stripe import invoicing, items, payments, schedules
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.rendering import render

DUE = "subscription.due"
TRIAL_WARNING_S = 3 * 86_400
INCOMPLETE_S = 23 * 3_600
ENDED = ("canceled", "incomplete_expired")


def plan(account: Account, subscription: Object) -> None:
    """Schedule the next thing that happens to it."""
    if subscription["status"] in ENDED:
        return
    times = [item["current_period_end"] for item in items.of(subscription)]
    times += [subscription[name] for name in ("trial_end", "cancel_at") if subscription[name]]
    if subscription["status"] == "trialing" and not subscription["_warned"]:
        times.append(max(subscription["trial_end"] - TRIAL_WARNING_S, account.now))
    if subscription["status"] == "incomplete":
        times.append(subscription["created"] + INCOMPLETE_S)
    paused = subscription["pause_collection"]
    if paused and paused["resumes_at"]:
        times.append(paused["resumes_at"])
    times += schedules.times(account, subscription)
    later = [time for time in times if time > account.now]
    warn_now = subscription["status"] == "trialing" and not subscription["_warned"]
    if warn_now and subscription["trial_end"] - TRIAL_WARNING_S <= account.now:
        later.append(account.now)
    if later and subscription["_next"] != min(later):
        subscription["_next"] = min(later)
        account.schedule(min(later), DUE, subscription["id"])


def due(account: Account, identity: str) -> None:
    """Do what this second brings; harmless when there is nothing to do."""
    subscription = account.table("subscription").get(identity)
    if subscription is None or subscription["status"] in ENDED or subscription["_next"] != account.now:
        return
    now, subscription["_next"] = account.now, None
    if subscription["status"] == "incomplete":
        if now >= subscription["created"] + INCOMPLETE_S:
            _expire(account, subscription)
        plan(account, subscription)
        return
    paused = subscription["pause_collection"]
    if paused and paused["resumes_at"] and now >= paused["resumes_at"]:
        subscription["pause_collection"] = None
        account.emit("customer.subscription.updated", render(account, subscription), {"pause_collection": paused})
    if subscription["status"] == "trialing":
        if not subscription["_warned"] and now >= subscription["trial_end"] - TRIAL_WARNING_S:
            subscription["_warned"] = True
            account.emit("customer.subscription.trial_will_end", render(account, subscription))
        if now >= subscription["trial_end"]:
            end_trial(account, subscription)
    elif subscription["status"] != "paused":
        _turn(account, subscription)
    schedules.advance(account, subscription)
    plan(account, subscription)


def ends_at(subscription: Object) -> int | None:
    """When it will end, if that is settled."""
    if subscription["cancel_at"]:
        found: int = subscription["cancel_at"]
        return found
    if subscription["cancel_at_period_end"]:
        return int(max(item["current_period_end"] for item in items.of(subscription)))
    return None


def _turn(account: Account, subscription: Object) -> None:
    now = account.now
    over = [item for item in items.of(subscription) if item["current_period_end"] <= now]
    ends = ends_at(subscription)
    if ends is not None and now >= ends:
        end(account, subscription, invoice_now=bool(over), prorate=False, at_period_end=True)
        return
    if not over:
        return
    metered = [items.usage_spec(item) for item in over if items.metered(account, item)]
    period = (min(item["current_period_start"] for item in over), now)
    before = {"items": render(account, subscription["items"])}
    schedules.advance(account, subscription)
    lines = []
    for item in items.of(subscription):
        fresh = item["current_period_end"] <= now or item["_usage_from"] == now
        if item["current_period_end"] <= now:
            items.set_period(account, item, subscription["billing_cycle_anchor"], now)
            item["_usage_from"] = item["current_period_start"]
        if fresh:
            lines += items.first_lines(account, item)
    _bill(account, subscription, "subscription_cycle", period, lines, metered)
    account.emit("customer.subscription.updated", render(account, subscription), before)


def _bill(
    account: Account,
    subscription: Object,
    reason: str,
    period: tuple[int, int],
    lines: list[Object],
    metered: list[Object],
) -> Object:
    """A draft that becomes final after its hour."""
    lines = lines + invoicing.pending_items(account, subscription["customer"], subscription["id"], take=True)
    invoice = invoicing.make(
        account,
        subscription["customer"],
        subscription=subscription,
        reason=reason,
        period=period,
        lines=lines,
        metered=metered,
    )
    if subscription["status"] == "unpaid":
        invoice["auto_advance"] = False
    subscription["latest_invoice"] = invoice["id"]
    invoicing.created(account, invoice)
    return invoice


def bill_now(
    account: Account,
    subscription: Object,
    reason: str,
    period: tuple[int, int],
    lines: list[Object],
    metered: list[Object],
) -> str:
    """An invoice that is final and tried at once; returns what became of it."""
    invoice = _bill(account, subscription, reason, period, lines, metered)
    invoicing.finalize(account, invoice)
    return payments.collect(account, invoice)


def end_trial(account: Account, subscription: Object) -> None:
    """Begin to bill, or do what the trial's settings say of customers without a payment method."""
    behaviour = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    without = payments.method_of(account, subscription["customer"], subscription) is None
    if subscription["cancel_at_period_end"] or (without and behaviour == "cancel"):
        end(account, subscription, invoice_now=False, prorate=False)
        return
    if without and behaviour == "pause" and subscription["collection_method"] == "charge_automatically":
        previous = {"status": subscription["status"]}
        subscription["status"] = "paused"
        account.emit("customer.subscription.updated", render(account, subscription), previous)
        account.emit("customer.subscription.paused", render(account, subscription))
        return
    begin(account, subscription, account.now)
    payments.set_status(account, subscription, "active")


def begin(account: Account, subscription: Object, anchor_s: int, *, at_once: bool = False) -> str:
    """Start a new cycle now, with an invoice of what is paid in advance."""
    subscription["billing_cycle_anchor"] = anchor_s
    lines = []
    for item in items.of(subscription):
        items.set_period(account, item, anchor_s, account.now)
        item["_usage_from"] = account.now
        lines += items.first_lines(account, item)
    period = (account.now, account.now)
    if at_once:
        return bill_now(account, subscription, "subscription_update", period, lines, [])
    _bill(account, subscription, "subscription_cycle", period, lines, [])
    return payments.PAID


def _expire(account: Account, subscription: Object) -> None:
    subscription.update(status="incomplete_expired", ended_at=account.now)
    invoice = account.table("invoice").get(subscription["latest_invoice"] or "")
    if invoice is not None and invoice["status"] == "open":
        invoicing.close(account, invoice, "void")
    account.emit("customer.subscription.updated", render(account, subscription), {"status": "incomplete"})


def end(
    account: Account, subscription: Object, *, invoice_now: bool, prorate: bool, at_period_end: bool = False
) -> None:
    """End it. Usage is invoiced only when asked for, or at a period's end."""
    lines: list[Object] = []
    metered: list[Object] = []
    for item in items.of(subscription):
        if subscription["status"] == "trialing":
            continue
        if items.metered(account, item):
            spec = items.usage_spec(item)
            spec["end"] = min(spec["end"], account.now)
            metered += [spec] if invoice_now and spec["end"] > spec["start"] else []
        elif prorate:
            lines += items.left(account, item)
    period = (min(item["current_period_start"] for item in items.of(subscription)), account.now)
    subscription.update(
        status="canceled",
        ended_at=account.now,
        canceled_at=subscription["canceled_at"] or account.now,
        pause_collection=None,
    )
    schedules.subscription_ended(account, subscription)
    if invoice_now and (lines or metered):
        if at_period_end:
            _bill(account, subscription, "subscription_cycle", period, lines, metered)
        else:
            bill_now(account, subscription, "subscription_cycle", period, lines, metered)
    elif lines:
        items.wait(account, subscription, lines)
    account.emit("customer.subscription.deleted", render(account, subscription))
