"""Stored copies of invoices with their lines, so that they can be listed while Stripe is away.

Guarantees: money is exact, in the currency's minor unit; what a later look saw is never replaced by an earlier one.
Gives up:   the document itself: ``hosted_url`` and ``pdf_url`` lead to Stripe, which draws it.
Source: https://docs.stripe.com/api/invoices/object
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from msgspec import Struct

from sidecar.billing import objects
from sidecar.billing.subscriptions.subscriptions import named
from sidecar.ledger.transaction import Transaction

STATUSES = ("draft", "open", "paid", "uncollectible", "void")
PAGE_MAX = 100


class Line(Struct, frozen=True, kw_only=True):
    """One line; ``amount`` in the minor unit, ``unit_amount`` in it too with up to twelve decimal places."""

    line: int
    metric: str
    description: str
    price: str
    quantity: Decimal
    amount: Decimal
    unit_amount: Decimal | None
    period_start_s: int
    period_end_s: int
    proration: bool


class Invoice(Struct, frozen=True, kw_only=True):
    """One invoice as it was seen last. Times of 0 are none."""

    id: str
    subscription: str
    status: str
    currency: str
    number: str
    reason: str
    total: Decimal
    subtotal: Decimal
    tax: Decimal
    amount_due: Decimal
    amount_paid: Decimal
    amount_remaining: Decimal
    period_start_s: int
    period_end_s: int
    made_s: int
    due_s: int
    paid_s: int
    attempts: int
    next_attempt_s: int
    hosted_url: str
    pdf_url: str
    lines: list[Line] = []


async def keep(
    tx: Transaction, tenant: str, raw: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], seen_by: int
) -> bool:
    """Keep an invoice and its lines as Stripe answered; False when a later look saw it already."""
    status = str(raw.get("status") or "draft")
    turned = raw.get("status_transitions") or {}
    finalized_s = int(turned.get("finalized_at") or 0)
    due_s = int(raw.get("due_date") or 0)
    owed_s = (due_s or finalized_s or int(raw["created"])) if status == "open" else 0
    kept = await tx.value(
        "put_invoice",
        str(raw["id"]),
        tenant,
        named(raw.get("customer")),
        subscription_of(raw),
        seen_by,
        status,
        str(raw.get("currency") or ""),
        str(raw.get("number") or ""),
        str(raw.get("billing_reason") or ""),
        _money(raw.get("total")),
        _money(raw.get("subtotal")),
        sum((_money(tax.get("amount")) for tax in raw.get("total_taxes") or ()), Decimal(0)),
        _money(raw.get("amount_due")),
        _money(raw.get("amount_paid")),
        _money(raw.get("amount_remaining")),
        int(raw.get("period_start") or raw["created"]),
        int(raw.get("period_end") or raw["created"]),
        int(raw["created"]),
        owed_s or None,
        due_s or None,
        int(turned.get("paid_at") or 0) or None,
        int(raw.get("attempt_count") or 0),
        int(raw.get("next_payment_attempt") or 0) or None,
        str(raw.get("hosted_invoice_url") or ""),
        str(raw.get("invoice_pdf") or ""),
    )
    if not kept:
        return False
    await tx.rows("drop_invoice_lines", str(raw["id"]))
    await _keep_lines(tx, tenant, str(raw["id"]), lines)
    return True


async def drop(tx: Transaction, invoice: str) -> None:
    """Forget a draft that Stripe has no more."""
    await tx.rows("drop_invoice_lines", invoice)
    await tx.rows("drop_invoice", invoice)


async def of_tenant(
    tx: Transaction, tenant: str, *, status: str = "", before: str = "", most: int = PAGE_MAX
) -> list[Invoice]:
    """A page of a tenant's invoices with their lines, the newest first."""
    rows = await tx.rows("invoices_of", tenant, status, before, most)
    lines: dict[str, list[Line]] = {}
    for invoice, *line in await tx.rows("invoice_lines_of", [row[0] for row in rows]):
        lines.setdefault(invoice, []).append(Line(**dict(zip(Line.__struct_fields__, line, strict=True))))
    names = Invoice.__struct_fields__[:-1]
    return [Invoice(**dict(zip(names, row, strict=True)), lines=lines.get(row[0], [])) for row in rows]


def subscription_of(raw: Mapping[str, Any]) -> str:
    """The subscription that an invoice belongs to; empty for one of its own."""
    details = (raw.get("parent") or {}).get("subscription_details") or {}
    return named(details.get("subscription"))


async def _keep_lines(tx: Transaction, tenant: str, invoice: str, lines: Sequence[Mapping[str, Any]]) -> None:
    prices = [_price_of(line) for line in lines]
    ours = await objects.by_ids(tx, {price for price in prices if price})
    periods = [line.get("period") or {} for line in lines]
    await tx.rows(
        "put_invoice_lines",
        invoice,
        tenant,
        list(range(1, len(lines) + 1)),
        [str(line["id"]) for line in lines],
        [ours[price].metric if price in ours else "" for price in prices],
        [str(line.get("description") or "") for line in lines],
        prices,
        [str(line.get("currency") or "") for line in lines],
        [_money(line.get("quantity_decimal") or line.get("quantity")) for line in lines],
        [_money(line.get("amount")) for line in lines],
        [_unit_amount(line) for line in lines],
        [int(period.get("start") or 0) or None for period in periods],
        [int(period.get("end") or 0) or None for period in periods],
        [_prorated(line) for line in lines],
    )


def _price_of(line: Mapping[str, Any]) -> str:
    details = (line.get("pricing") or {}).get("price_details") or {}
    return named(details.get("price"))


def _unit_amount(line: Mapping[str, Any]) -> Decimal | None:
    amount = (line.get("pricing") or {}).get("unit_amount_decimal")
    return None if amount is None else _money(amount)


def _prorated(line: Mapping[str, Any]) -> bool:
    parent = line.get("parent") or {}
    details = parent.get("subscription_item_details") or parent.get("invoice_item_details") or {}
    return bool(details.get("proration"))


def _money(amount: object) -> Decimal:
    """Through text, since Stripe's decimals come as numbers in some places and as texts in others."""
    return Decimal(str(amount or 0))
