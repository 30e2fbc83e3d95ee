"""Checkout sessions for subscriptions.

Guarantees: nothing happens by making a session. POST /_checkout completes or expires it, as a person would; then the
            customer gets a payment method, and the subscription is made as by an API call.
Gives up:   the page itself, and the modes payment and setup.
Source: https://docs.stripe.com/api/checkout/sessions
"""

from __future__ import annotations

from typing import Any

from sidecar.embedded.stripe import customers, cycle, fields, items, payment_methods, subscription_fields, subscriptions
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import ONLY_EXPAND, Call, Route, shown
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.fields import Fields, array, boolean, choice, integer, nested, text
from sidecar.embedded.stripe.listing import cut, listing, page
from sidecar.embedded.stripe.rendering import render

EXPIRE = "checkout.expire"
EXPIRES_S = cycle.DAY_S
EXPIRES_MIN_S = 1_800
BASE_URL = "https://checkout.stripe.invalid/c/pay"
SUBSCRIPTION_DATA = Fields(
    {
        "billing_cycle_anchor": integer(0),
        "description": text(500),
        "metadata": fields.metadata,
        "proration_behavior": choice("create_prorations", "none"),
        "trial_end": integer(0),
        "trial_period_days": integer(1, 730),
        "trial_settings": nested(subscription_fields.TRIAL_SETTINGS),
    }
)
CREATE = Fields(
    {
        "allow_promotion_codes": boolean,
        "automatic_tax": nested(Fields({"enabled": boolean}, ["enabled"])),
        "billing_address_collection": choice("auto", "required"),
        "cancel_url": text(),
        "client_reference_id": text(200),
        "currency": fields.currency,
        "customer": text(),
        "customer_email": text(800),
        "customer_update": nested(Fields({name: choice("auto", "never") for name in ("address", "name", "shipping")})),
        "expires_at": integer(0),
        "line_items": array(nested(Fields({"price": text(), "quantity": integer(0)}, ["price"])), items.COUNT_MAX),
        "locale": text(),
        "metadata": fields.metadata,
        "mode": choice("payment", "setup", "subscription"),
        "payment_method_collection": choice("always", "if_required"),
        "subscription_data": nested(SUBSCRIPTION_DATA),
        "success_url": text(),
        "tax_id_collection": nested(Fields({"enabled": boolean}, ["enabled"])),
        "ui_mode": choice("hosted_page"),
        **fields.EXPAND,
    },
    ["mode", "success_url"],
)
LIST = Fields(
    {
        "customer": text(),
        "status": choice("complete", "expired", "open"),
        "subscription": text(),
        **fields.CREATED,
        **fields.PAGE,
    }
)
LINES = Fields(fields.PAGE)


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    if values["mode"] != "subscription":
        raise bad_parameter("The stand-in knows the mode `subscription` only.", "mode")
    if not values.get("line_items"):
        raise bad_parameter("Missing required param: line_items.", "line_items", "parameter_missing")
    if "customer" in values and "customer_email" in values:
        raise bad_parameter(
            "You may only specify one of these parameters: customer, customer_email.",
            "customer",
            "parameters_exclusive",
        )
    if "customer" in values:
        account.get("customer", values["customer"], "customer")
    ends = values.get("expires_at", account.now + EXPIRES_S)
    if not account.now + EXPIRES_MIN_S <= ends <= account.now + EXPIRES_S:
        raise Refused(
            "The `expires_at` timestamp must be between 30 minutes and 24 hours from now.", param="expires_at"
        )
    currency = _check_lines(account, values["line_items"])
    identity = account.new_id("checkout.session")
    session = account.add(
        "checkout.session",
        {
            "id": identity,
            "allow_promotion_codes": values.get("allow_promotion_codes"),
            "amount_subtotal": None,
            "amount_total": None,
            "automatic_tax": {"enabled": False, "status": None, **values.get("automatic_tax", {})},
            "cancel_url": values.get("cancel_url"),
            "client_reference_id": values.get("client_reference_id"),
            "client_secret": None,
            "currency": currency,
            "customer": values.get("customer"),
            "customer_details": None,
            "customer_email": values.get("customer_email"),
            "expires_at": ends,
            "invoice": None,
            "line_items": None,
            "locale": values.get("locale"),
            "metadata": fields.merged({}, values.get("metadata")),
            "mode": "subscription",
            "payment_intent": None,
            "payment_method_collection": values.get("payment_method_collection", "always"),
            "payment_method_types": ["card"],
            "payment_status": "unpaid",
            "setup_intent": None,
            "status": "open",
            "subscription": None,
            "success_url": values["success_url"],
            "ui_mode": "hosted_page",
            "url": f"{BASE_URL}/{identity}",
            "_lines": values["line_items"],
            "_subscription": values.get("subscription_data", {}),
        },
    )
    account.schedule(ends, EXPIRE, identity)
    return _shown(account, session, values)


def _check_lines(account: Account, given: list[dict[str, Any]]) -> str:
    currency = ""
    for number, line in enumerate(given):
        price = items.recurring_price(account, line["price"], f"line_items[{number}][price]")
        if currency and price["currency"] != currency:
            raise Refused("All line items must have the same currency.", param=f"line_items[{number}][price]")
        currency = price["currency"]
        licensed = price["recurring"]["usage_type"] == "licensed"
        if licensed != ("quantity" in line):
            words = "is required for licensed prices." if licensed else "cannot be set for metered prices."
            raise Refused(f"Quantity {words}", param=f"line_items[{number}][quantity]")
    return currency


def _shown(account: Account, session: Object, values: dict[str, Any]) -> Object:
    """Line items are shown only when they are expanded."""
    wanted = values.get("expand") or []
    found = shown(account, session, {"expand": [path for path in wanted if not path.startswith("line_items")]})
    found.pop("line_items")
    if any(path.startswith("line_items") for path in wanted):
        found["line_items"] = listing(
            render(account, _line_items(account, session)), f"/v1/checkout/sessions/{session['id']}/line_items"
        )
    return found


def _line_items(account: Account, session: Object) -> list[Object]:
    return [
        {
            "id": f"li_{session['id'][-20:]}{number}",
            "object": "item",
            "currency": session["currency"],
            "price": render(account, account.table("price")[line["price"]]),
            "quantity": line.get("quantity"),
        }
        for number, line in enumerate(session["_lines"])
    ]


def retrieve(account: Account, call: Call) -> Object:
    values = ONLY_EXPAND.read(call.params)
    return _shown(account, account.get("checkout.session", call.id, in_path=True), values)


def line_items(account: Account, call: Call) -> Object:
    values = LINES.read(call.params)
    session = account.get("checkout.session", call.id, in_path=True)
    return cut(account, _line_items(account, session), values, f"/v1/checkout/sessions/{call.id}/line_items")


def expire(account: Account, call: Call) -> Object:
    values = ONLY_EXPAND.read(call.params)
    session = account.get("checkout.session", call.id, in_path=True)
    if session["status"] != "open":
        raise Refused(
            f'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status of '
            f"{session['status']}."
        )
    _expire(account, session)
    return _shown(account, session, values)


def _expire(account: Account, session: Object) -> None:
    session.update(status="expired", url=None)
    account.emit("checkout.session.expired", _shown(account, session, {}))


def expire_due(account: Account, identity: str) -> None:
    session = account.table("checkout.session")[identity]
    if session["status"] == "open":
        _expire(account, session)


def complete(account: Account, identity: str, card: str = "pm_card_visa") -> Object:
    """What a person does on the page: pays with a test card, or, with card "", goes on without."""
    session = account.get("checkout.session", identity, "session")
    if session["status"] != "open":
        raise Refused(f"The session {identity} is {session['status']}.")
    if session["customer"] is None:
        made = customers.create(account, Call({"email": session["customer_email"] or "someone@example.com"}))
        session["customer"] = made["id"]
    method = payment_methods.attached(account, card, session["customer"], "card")["id"] if card else None
    chosen = {"default_payment_method": method} if method else {}
    subscription = subscriptions.make(
        account,
        {
            "customer": session["customer"],
            "items": session["_lines"],
            "payment_behavior": "error_if_incomplete",
            "automatic_tax": {"enabled": session["automatic_tax"]["enabled"]},
            **session["_subscription"],
            **chosen,
        },
    )
    invoice = account.table("invoice")[subscription["latest_invoice"]]
    customer = account.table("customer")[session["customer"]]
    session.update(
        status="complete",
        payment_status="paid" if invoice["amount_due"] else "no_payment_required",
        subscription=subscription["id"],
        invoice=invoice["id"],
        amount_subtotal=invoice["subtotal"],
        amount_total=invoice["total"],
        customer_details={"email": customer["email"], "name": customer["name"], "phone": None, "address": None},
        url=None,
    )
    account.changes += 1
    account.emit("checkout.session.completed", _shown(account, session, {}))
    return _shown(account, session, {})


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    found = [
        session
        for session in account.table("checkout.session").values()
        if all(values.get(name, session[name]) == session[name] for name in ("customer", "status", "subscription"))
    ]
    return page(account, found, values, "/v1/checkout/sessions")


ROUTES = [
    Route("POST", "/v1/checkout/sessions", create),
    Route("GET", "/v1/checkout/sessions", listed),
    Route("GET", "/v1/checkout/sessions/{id}", retrieve),
    Route("GET", "/v1/checkout/sessions/{id}/line_items", line_items),
    Route("POST", "/v1/checkout/sessions/{id}/expire", expire),
]
