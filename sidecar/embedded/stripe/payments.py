"""Paying invoices, and what success and failure do to a subscription.

Guarantees: an attempt ends as POST /_options says: per customer, else by the payment method, else ``payment``.
Gives up:   payment intents as objects, partial payments, and Smart Retries: attempts are evenly spaced.
Source: https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses
"""

from __future__ import annotations

from sidecar.embedded.stripe import invoicing
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.errors import CARD, Refused
from sidecar.embedded.stripe.rendering import render

RETRY = "invoice.retry"
PAID, FAILED, ACTION = "paid", "failed", "action_required"


def method_of(account: Account, customer: str, subscription: Object | None) -> Object | None:
    """The payment method that is charged: the subscription's, else the customer's default."""
    who = account.table("customer").get(customer) or {}
    chosen = (subscription or {}).get("default_payment_method") or (who.get("invoice_settings") or {}).get(
        "default_payment_method"
    )
    return account.table("payment_method").get(chosen) if chosen else None


def outcome(account: Account, customer: str, subscription: Object | None) -> str:
    options = account.options
    if customer in options.payments:
        return options.payments[customer]
    method = method_of(account, customer, subscription)
    if method is None:
        return FAILED if options.payment_method_needed else options.payment
    return str(method["_outcome"] or options.payment)


def subscription_of(account: Account, invoice: Object) -> Object | None:
    parent = invoice["parent"]
    return account.table("subscription").get(parent["subscription_details"]["subscription"]) if parent else None


def settled(account: Account, invoice: Object) -> None:
    """An invoice was paid elsewhere."""
    _paid(account, invoice, subscription_of(account, invoice))


def collect(account: Account, invoice: Object, *, charge: bool = False, method: str | None = None) -> str:
    """Try to pay an open invoice; returns the outcome, and has told everybody.

    ``charge`` tries even what is sent to be paid by hand, ``method`` a payment method that is not the default.
    """
    subscription = subscription_of(account, invoice)
    if invoice["amount_due"] == 0:
        invoicing.mark_paid(account, invoice, attempted=False)
        _paid(account, invoice, subscription)
        return PAID
    if invoice["collection_method"] == "send_invoice" and not charge:
        account.emit("invoice.sent", render(account, invoice))
        return PAID
    chosen = {"default_payment_method": method} if method else subscription
    result = outcome(account, invoice["customer"], chosen)
    if result == PAID:
        invoicing.mark_paid(account, invoice, attempted=True)
        _paid(account, invoice, subscription)
        return PAID
    invoice["attempt_count"] += 1
    invoice["attempted"] = True
    more = invoice["attempt_count"] < account.options.payment_attempts_max and invoice["billing_reason"] != (
        "subscription_create"
    )
    invoice["next_payment_attempt"] = account.now + account.options.payment_retry_s if more else None
    if more:
        account.schedule(invoice["next_payment_attempt"], RETRY, invoice["id"])
    account.emit("invoice.payment_failed", render(account, invoice))
    if result == ACTION:
        account.emit("invoice.payment_action_required", render(account, invoice))
    if subscription is not None:
        _failed(account, invoice, subscription, exhausted=not more)
    return result


def _paid(account: Account, invoice: Object, subscription: Object | None) -> None:
    if subscription is None or subscription["latest_invoice"] != invoice["id"]:
        return
    if subscription["status"] in ("past_due", "unpaid", "incomplete"):
        set_status(account, subscription, "active")


def _failed(account: Account, invoice: Object, subscription: Object, *, exhausted: bool) -> None:
    if invoice["billing_reason"] == "subscription_create":
        return
    if subscription["status"] == "active":
        set_status(account, subscription, "past_due")
    if exhausted and subscription["status"] == "past_due" and account.options.exhausted != "past_due":
        if account.options.exhausted == "canceled":
            account.end_subscription(account, subscription["id"])
        else:
            set_status(account, subscription, "unpaid")


def set_status(account: Account, subscription: Object, status: str) -> None:
    previous = {"status": subscription["status"]}
    subscription["status"] = status
    account.emit("customer.subscription.updated", render(account, subscription), previous)


def finalize_due(account: Account, identity: str) -> None:
    """Finalize a draft whose hour is over, and collect it."""
    invoice = account.table("invoice").get(identity)
    if invoice is None or invoice["status"] != "draft" or not invoice["auto_advance"]:
        return
    subscription = subscription_of(account, invoice)
    paused = (subscription or {}).get("pause_collection")
    if paused and paused["behavior"] == "keep_as_draft":
        invoice["auto_advance"] = False
        return
    invoicing.finalize(account, invoice)
    if paused and invoice["amount_due"]:
        invoicing.close(account, invoice, {"void": "void", "mark_uncollectible": "uncollectible"}[paused["behavior"]])
        return
    collect(account, invoice)


def retry_due(account: Account, identity: str) -> None:
    invoice = account.table("invoice").get(identity)
    if invoice is not None and invoice["status"] == "open" and invoice["next_payment_attempt"] == account.now:
        collect(account, invoice)


def declined(result: str) -> Refused:
    """What a call says that could not pay."""
    if result == ACTION:
        return Refused(
            "Payment for this subscription requires additional user action before it can be completed successfully.",
            status=402,
            type=CARD,
            code="subscription_payment_intent_requires_action",
        )
    return Refused("Your card was declined.", status=402, type=CARD, code="card_declined")
