"""The endpoints of invoices, and the preview of the next one.

Source: https://docs.stripe.com/api/invoices, https://docs.stripe.com/api/invoices/create_preview
"""

from __future__ import annotations

import copy
from typing import Any

from sidecar.embedded.stripe import cycles, fields, invoicing, items, payments
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import ONLY_EXPAND, Call, Route, shown
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.fields import Fields, array, boolean, choice, integer, nested, text
from sidecar.embedded.stripe.listing import created_within, cut, page
from sidecar.embedded.stripe.rendering import render

STATUSES = ("draft", "open", "paid", "uncollectible", "void")
LIST = Fields(
    {
        "collection_method": choice("charge_automatically", "send_invoice"),
        "customer": text(),
        "status": choice(*STATUSES),
        "subscription": text(),
        **fields.CREATED,
        **fields.PAGE,
    }
)
LINES = Fields(fields.PAGE)
PAY = Fields({"paid_out_of_band": boolean, "payment_method": text(), "off_session": boolean, **fields.EXPAND})
FINALIZE = Fields({"auto_advance": boolean, **fields.EXPAND})
UPDATE = Fields(
    {"auto_advance": boolean, "description": fields.clearable(text()), "metadata": fields.metadata, **fields.EXPAND}
)
PREVIEW = Fields(
    {
        "customer": text(),
        "subscription": text(),
        "preview_mode": choice("next", "recurring"),
        "subscription_details": nested(
            Fields(
                {
                    "items": array(items.CHANGED_KIND, items.COUNT_MAX),
                    "proration_behavior": choice("always_invoice", "create_prorations", "none"),
                    "cancel_at_period_end": boolean,
                    "cancel_now": boolean,
                    "proration_date": integer(0),
                }
            )
        ),
        **fields.EXPAND,
    }
)


def retrieve(account: Account, call: Call) -> Object:
    values = ONLY_EXPAND.read(call.params)
    return shown(account, invoicing.refresh(account, _get(account, call)), values)


def _get(account: Account, call: Call) -> Object:
    return account.get("invoice", call.id, in_path=True)


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    found = [
        invoice
        for invoice in account.table("invoice").values()
        if values.get("customer", invoice["customer"]) == invoice["customer"]
        and values.get("status", invoice["status"]) == invoice["status"]
        and values.get("collection_method", invoice["collection_method"]) == invoice["collection_method"]
        and ("subscription" not in values or _belongs(invoice, values["subscription"]))
        and created_within(invoice, values)
    ]
    for invoice in found:
        invoicing.refresh(account, invoice)
    return page(account, found, values, "/v1/invoices")


def _belongs(invoice: Object, subscription: str) -> bool:
    parent = invoice["parent"]
    return parent is not None and parent["subscription_details"]["subscription"] == subscription


def lines(account: Account, call: Call) -> Object:
    values = LINES.read(call.params)
    invoice = invoicing.refresh(account, _get(account, call))
    return cut(account, list(invoice["lines"]["data"]), values, f"/v1/invoices/{call.id}/lines")


def update(account: Account, call: Call) -> Object:
    values = UPDATE.read(call.params)
    invoice = _get(account, call)
    if invoice["status"] != "draft" and set(values) - {"metadata", "expand"}:
        raise Refused("Finalized invoices can't be updated in this way.", code="invoice_not_editable")
    invoice["metadata"] = fields.merged(invoice["metadata"], values.get("metadata"))
    for name in ("auto_advance", "description"):
        if name in values:
            invoice[name] = values[name]
    if values.get("auto_advance"):
        account.schedule(account.now + account.options.finalize_after_s, invoicing.FINALIZE, invoice["id"])
    account.emit("invoice.updated", render(account, invoice))
    return shown(account, invoice, values)


def finalize(account: Account, call: Call) -> Object:
    values = FINALIZE.read(call.params)
    invoice = _get(account, call)
    invoicing.finalize(account, invoice)
    if values.get("auto_advance", invoice["auto_advance"]):
        payments.collect(account, invoice)
    return shown(account, invoice, values)


def pay(account: Account, call: Call) -> Object:
    values = PAY.read(call.params)
    invoice = _get(account, call)
    if invoice["status"] == "paid":
        raise Refused("Invoice is already paid", code="invoice_already_paid")
    if invoice["status"] == "draft":
        invoicing.finalize(account, invoice)
    if invoice["status"] not in ("open", "uncollectible"):
        raise Refused(f"An invoice that is {invoice['status']} cannot be paid.", code="invoice_not_editable")
    if values.get("paid_out_of_band"):
        invoicing.mark_paid(account, invoice, attempted=False)
        payments.settled(account, invoice)
        return shown(account, invoice, values)
    if "payment_method" in values:
        account.get("payment_method", values["payment_method"], "payment_method")
    result = payments.collect(account, invoice, charge=True, method=values.get("payment_method"))
    if result != payments.PAID:
        raise payments.declined(result)
    return shown(account, invoice, values)


def void(account: Account, call: Call) -> Object:
    return _closed(account, call, "void")


def mark_uncollectible(account: Account, call: Call) -> Object:
    return _closed(account, call, "uncollectible")


def _closed(account: Account, call: Call, status: str) -> Object:
    values = ONLY_EXPAND.read(call.params)
    invoice = _get(account, call)
    if invoice["status"] not in ("open", "uncollectible") or invoice["status"] == status:
        raise Refused(
            f"You can only pass in open invoices. This invoice isn't open: it is {invoice['status']}.", param="invoice"
        )
    invoicing.close(account, invoice, status)
    return shown(account, invoice, values)


def preview(account: Account, call: Call) -> Object:
    """The next invoice as it would be now, with changes that are only tried."""
    values = PREVIEW.read(call.params)
    found = account.table("subscription")
    if "subscription" in values:
        subscription = account.get("subscription", values["subscription"], "subscription")
    elif "customer" in values:
        customer = account.get("customer", values["customer"], "customer")["id"]
        living = [one for one in found.values() if one["customer"] == customer and one["status"] not in cycles.ENDED]
        if not living:
            raise Refused(f"No upcoming invoices for customer: {customer}", status=404, code="invoice_upcoming_none")
        subscription = min(living, key=_next_end)
    else:
        raise bad_parameter("You must specify a customer or a subscription.", "customer", "parameter_missing")
    if subscription["status"] in cycles.ENDED:
        raise Refused(
            f"No upcoming invoices for customer: {subscription['customer']}", status=404, code="invoice_upcoming_none"
        )
    tried = copy.deepcopy(subscription)
    prorations = _try(account, tried, values.get("subscription_details", {}))
    return shown(account, _upcoming(account, tried, prorations), values)


def _next_end(subscription: Object) -> int:
    return int(min(item["current_period_end"] for item in items.of(subscription)))


def _try(account: Account, tried: Object, details: dict[str, Any]) -> list[Object]:
    if "cancel_at_period_end" in details:
        tried["cancel_at_period_end"] = details["cancel_at_period_end"]
    if "items" not in details:
        return []
    prorate = details.get("proration_behavior", "create_prorations") != "none"
    return items.change(account, tried, details["items"], prorate=prorate, param="subscription_details[items]")


def _upcoming(account: Account, tried: Object, prorations: list[Object]) -> Object:
    end = _next_end(tried)
    over = [item for item in items.of(tried) if item["current_period_end"] == end]
    ends = cycles.ends_at(tried)
    metered, made = [], list(prorations)
    trialing = tried["status"] == "trialing"
    for item in over:
        if items.metered(account, item):
            metered += [] if trialing else [items.usage_spec(item)]
        elif ends is None or ends > end:
            following = copy.deepcopy(item)
            items.set_period(account, following, tried["billing_cycle_anchor"], end)
            made += items.first_lines(account, following)
    made += invoicing.pending_items(account, tried["customer"], tried["id"], take=False)
    period = (min(item["current_period_start"] for item in over), end)
    return invoicing.make(
        account,
        tried["customer"],
        subscription=tried,
        reason="upcoming",
        period=period,
        lines=made,
        metered=metered,
        preview=True,
    )


ROUTES = [
    Route("GET", "/v1/invoices", listed),
    Route("POST", "/v1/invoices/create_preview", preview),
    Route("GET", "/v1/invoices/{id}", retrieve),
    Route("POST", "/v1/invoices/{id}", update),
    Route("GET", "/v1/invoices/{id}/lines", lines),
    Route("POST", "/v1/invoices/{id}/finalize", finalize),
    Route("POST", "/v1/invoices/{id}/pay", pay),
    Route("POST", "/v1/invoices/{id}/void", void),
    Route("POST", "/v1/invoices/{id}/mark_uncollectible", mark_uncollectible),
]
