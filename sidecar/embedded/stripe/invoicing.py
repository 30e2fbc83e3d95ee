"""Making invoices: lines, totals, and the way from draft to paid, void or uncollectible.

Guarantees: the lines of metered prices follow the usage until the invoice is final, and never change after.
Gives up:   discounts, taxes (automatic_tax is kept, but every tax is 0), credit notes and customer balances.
Source: https://docs.stripe.com/api/invoices, https://docs.stripe.com/billing/invoices/subscription
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.fields import plain
from sidecar.embedded.stripe.listing import listing
from sidecar.embedded.stripe.pricing import Charge, charges, in_currency
from sidecar.embedded.stripe.rendering import render

FINALIZE = "invoice.finalize"
BASE_URL = "https://invoice.stripe.invalid"


def make(
    account: Account,
    customer: str,
    *,
    subscription: Object | None,
    reason: str,
    period: tuple[int, int],
    lines: list[Object],
    metered: list[Object],
    preview: bool = False,
) -> Object:
    """A draft; ``metered`` says which usage its last lines follow."""
    who = account.get("customer", customer, "customer")
    currency = subscription["currency"] if subscription else who["currency"] or "usd"
    sends = subscription is not None and subscription["collection_method"] == "send_invoice"
    values: Object = {
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": (subscription or {}).get("automatic_tax", {"enabled": False}),
        "automatically_finalizes_at": account.now + account.options.finalize_after_s,
        "billing_reason": reason,
        "collection_method": "send_invoice" if sends else "charge_automatically",
        "currency": currency,
        "customer": customer,
        "customer_email": who["email"],
        "customer_name": who["name"],
        "default_payment_method": None,
        "description": None,
        "discounts": [],
        "due_date": account.now + 86_400 * (subscription["days_until_due"] or 30) if subscription and sends else None,
        "effective_at": None,
        "ending_balance": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "last_finalization_error": None,
        "lines": listing([], ""),
        "metadata": {},
        "next_payment_attempt": account.now + account.options.finalize_after_s if not sends else None,
        "number": None,
        "parent": _parent(subscription),
        "period_end": period[1],
        "period_start": period[0],
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_taxes": [],
        "_lines": lines,
        "_metered": metered,
    }
    if preview:
        invoice = {
            "id": account.new_id("invoice").replace("in_", "upcoming_in_"),
            "object": "invoice",
            "created": account.now,
            "livemode": False,
            **values,
        }
    else:
        invoice = account.add("invoice", values)
    for line in invoice["_lines"]:
        line["invoice"] = invoice["id"]
    refresh(account, invoice)
    return invoice


def _parent(subscription: Object | None) -> Object | None:
    if subscription is None:
        return None
    return {
        "type": "subscription_details",
        "quote_details": None,
        "subscription_details": {
            "metadata": dict(subscription["metadata"]),
            "subscription": subscription["id"],
            "subscription_proration_date": None,
        },
    }


def line(
    account: Account,
    item: Object,
    charge: Charge,
    period: tuple[int, int],
    description: str,
    *,
    proration: bool = False,
) -> Object:
    """One line for an item of a subscription, by the price it has now."""
    price = account.table("price")[item["price"]]
    return {
        "id": account.new_id("line_item"),
        "object": "line_item",
        "amount": charge.amount,
        "currency": item["_currency"],
        "description": description,
        "discount_amounts": [],
        "discountable": not proration,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "parent": {
            "type": "subscription_item_details",
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": proration,
                "proration_details": {"credited_items": None},
                "subscription": item["subscription"],
                "subscription_item": item["id"],
            },
        },
        "period": {"start": period[0], "end": period[1]},
        "pretax_credit_amounts": [],
        "pricing": {
            "type": "price_details",
            "price_details": {"price": price["id"], "product": price["product"]},
            "unit_amount_decimal": charge.unit_amount_decimal,
        },
        "quantity": int(charge.quantity),
        "quantity_decimal": plain(charge.quantity),
        "subscription": item["subscription"],
        "subtotal": charge.amount,
        "taxes": [],
    }


def price_lines(account: Account, item: Object, quantity: Decimal, period: tuple[int, int]) -> list[Object]:
    """The lines of one item of a subscription."""
    price = account.table("price")[item["price"]]
    product = account.table("product")[price["product"]]["name"]
    interval = price["recurring"]["interval"]
    return [
        line(
            account,
            item,
            charge,
            period,
            f"{plain(charge.quantity)} x {product}" + (f" ({charge.label} / {interval})" if charge.label else ""),
        )
        for charge in charges(in_currency(price, item["_currency"]), quantity)
    ]


def refresh(account: Account, invoice: Object) -> Object:
    """Bring a draft's metered lines and totals up to the usage known now."""
    if invoice["status"] != "draft":
        return invoice
    data = list(invoice["_lines"])
    for spec in invoice["_metered"]:
        price = account.table("price")[spec["price"]]
        meter = account.table("billing.meter")[price["recurring"]["meter"]]
        formula = meter["default_aggregation"]["formula"]
        usage = account.metering.total(meter["id"], invoice["customer"], formula, spec["start"], spec["end"])
        item = {"id": spec["item"], **{name: spec[name] for name in ("subscription", "price", "_currency")}}
        made = price_lines(account, item, usage, (spec["start"], spec["end"]))
        for number, found in enumerate(made):
            found["id"] = spec["ids"].setdefault(str(number), found["id"])
            found["invoice"] = invoice["id"]
        data += made
    invoice["lines"] = listing(data, f"/v1/invoices/{invoice['id']}/lines")
    total = sum(found["amount"] for found in data)
    invoice.update(subtotal=total, total=total, total_excluding_tax=total)
    invoice["amount_due"] = max(total, 0)
    invoice["amount_remaining"] = invoice["amount_due"] - invoice["amount_paid"]
    return invoice


def metered_spec(item: Object, start: int, end: int) -> Object:
    """What a metered line follows; ``ids`` keeps its lines' ids stable."""
    return {
        "item": item["id"],
        "subscription": item["subscription"],
        "price": item["price"],
        "_currency": item["_currency"],
        "start": start,
        "end": end,
        "ids": {},
    }


def created(account: Account, invoice: Object) -> None:
    """Tell of a draft, which becomes final later."""
    account.emit("invoice.created", render(account, invoice))
    account.schedule(invoice["automatically_finalizes_at"], FINALIZE, invoice["id"])


def finalize(account: Account, invoice: Object) -> None:
    """From now on nothing of it changes but its payment."""
    if invoice["status"] != "draft":
        raise Refused(
            "This invoice is already finalized, you can't re-finalize a non-draft invoice.", code="invoice_not_editable"
        )
    refresh(account, invoice)
    customer = account.table("customer")[invoice["customer"]]
    number = customer.get("next_invoice_sequence", 1)
    customer["next_invoice_sequence"] = number + 1
    invoice.update(
        status="open",
        number=f"{customer.get('invoice_prefix', 'GONE')}-{number:04d}",
        hosted_invoice_url=f"{BASE_URL}/i/{invoice['id']}",
        invoice_pdf=f"{BASE_URL}/pdf/{invoice['id']}",
        effective_at=account.now,
        automatically_finalizes_at=None,
        starting_balance=0,
        ending_balance=0,
    )
    invoice["status_transitions"]["finalized_at"] = account.now
    account.emit("invoice.finalized", render(account, invoice))


def mark_paid(account: Account, invoice: Object, *, attempted: bool) -> None:
    invoice.update(
        status="paid",
        amount_paid=invoice["amount_due"],
        amount_remaining=0,
        attempted=True,
        auto_advance=False,
        next_payment_attempt=None,
    )
    if attempted:
        invoice["attempt_count"] += 1
    invoice["status_transitions"]["paid_at"] = account.now
    account.emit("invoice.paid", render(account, invoice))
    account.emit("invoice.payment_succeeded", render(account, invoice))


def close(account: Account, invoice: Object, status: str) -> None:
    """Void it, or give it up as uncollectible."""
    transition = {"void": "voided_at", "uncollectible": "marked_uncollectible_at"}[status]
    told = {"void": "invoice.voided", "uncollectible": "invoice.marked_uncollectible"}[status]
    invoice.update(status=status, auto_advance=False, next_payment_attempt=None)
    if status == "void":
        invoice["amount_remaining"] = 0
    invoice["status_transitions"][transition] = account.now
    account.emit(told, render(account, invoice))


def pending_items(account: Account, customer: str, subscription: str | None, *, take: bool) -> list[Object]:
    """Lines of prorations that wait for the next invoice."""
    table = account.table("invoiceitem")
    found: list[Any] = [
        item for item in table.values() if item["customer"] == customer and item["subscription"] == subscription
    ]
    if take:
        for item in found:
            del table[item["id"]]
    return [dict(item["_line"]) for item in found]
