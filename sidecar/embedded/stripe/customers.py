"""Customers.

Source: https://docs.stripe.com/api/customers
"""

from __future__ import annotations

from typing import Any

from sidecar.embedded.stripe import fields, payment_methods, searching
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import ONLY_EXPAND, Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import bad_parameter
from sidecar.embedded.stripe.fields import Fields, Kind, clearable, nested, text
from sidecar.embedded.stripe.listing import created_within, page
from sidecar.embedded.stripe.rendering import render

ADDRESS = Fields({name: clearable(text()) for name in ("city", "country", "line1", "line2", "postal_code", "state")})
TAX = Fields({"ip_address": clearable(text()), "validate_location": fields.choice("deferred", "immediately")})
INVOICE_SETTINGS = Fields({"default_payment_method": clearable(text())})
COMMON: dict[str, Kind] = {
    "name": clearable(text(256)),
    "email": clearable(text(512)),
    "description": clearable(text()),
    "phone": clearable(text(20)),
    "metadata": fields.metadata,
    "address": clearable(nested(ADDRESS)),
    "tax": nested(TAX),
    "invoice_settings": nested(INVOICE_SETTINGS),
    "preferred_locales": fields.array(text()),
    **fields.EXPAND,
}
CREATE = Fields({**COMMON, "payment_method": text(), "test_clock": text()})
UPDATE = Fields(COMMON)
LIST = Fields({"email": text(512), **fields.CREATED, **fields.PAGE})
PLAIN = ("name", "email", "description", "phone", "address", "preferred_locales")


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    if "test_clock" in values:
        raise bad_parameter("The stand-in has one clock for everybody; see its /_clock.", "test_clock")
    customer = account.add(
        "customer",
        {
            "address": None,
            "balance": 0,
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "description": None,
            "discount": None,
            "email": None,
            "invoice_prefix": account.new_id("customer")[4:12].upper(),
            "invoice_settings": {
                "custom_fields": None,
                "default_payment_method": None,
                "footer": None,
                "rendering_options": None,
            },
            "metadata": {},
            "name": None,
            "next_invoice_sequence": 1,
            "phone": None,
            "preferred_locales": [],
            "shipping": None,
            "tax_exempt": "none",
        },
    )
    _apply(account, customer, values)
    account.emit("customer.created", render(account, customer))
    return shown(account, customer, values)


def update(account: Account, call: Call) -> Object:
    values = UPDATE.read(call.params)
    customer = account.get("customer", call.id, in_path=True)
    before = render(account, customer)
    _apply(account, customer, values)
    previous = {name: old for name, old in before.items() if customer.get(name) != old}
    if previous:
        account.emit("customer.updated", render(account, customer), previous)
    return shown(account, customer, values)


def _apply(account: Account, customer: Object, values: dict[str, Any]) -> None:
    for name in PLAIN:
        if name in values:
            customer[name] = values[name]
    customer["metadata"] = fields.merged(customer["metadata"], values.get("metadata"))
    made: dict[str, str] = {}
    if "payment_method" in values:
        token = values["payment_method"]
        made[token] = payment_methods.attached(account, token, customer["id"], "payment_method")["id"]
    if "default_payment_method" in values.get("invoice_settings", {}):
        token = values["invoice_settings"]["default_payment_method"]
        param = "invoice_settings[default_payment_method]"
        if token is not None and token not in made:
            made[token] = payment_methods.attached(account, token, customer["id"], param)["id"]
        customer["invoice_settings"]["default_payment_method"] = made.get(token)
    account.changes += 1


def delete(account: Account, call: Call) -> Object:
    ONLY_EXPAND.read(call.params)
    customer = account.get("customer", call.id, in_path=True)
    if customer.get("deleted"):
        raise bad_parameter(f"No such customer: '{call.id}'", "id", "resource_missing")
    for cancel in account.on_customer_deleted:
        cancel(account, call.id)
    account.emit("customer.deleted", render(account, customer))
    account.table("customer")[call.id] = {"id": call.id, "object": "customer", "deleted": True, "created": 0}
    return {"id": call.id, "object": "customer", "deleted": True}


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    found = (
        customer
        for customer in account.table("customer").values()
        if not customer.get("deleted")
        and ("email" not in values or customer["email"] == values["email"])
        and created_within(customer, values)
    )
    return page(account, found, values, "/v1/customers")


def search(account: Account, call: Call) -> Object:
    return searching.search(account, call, "customer", "/v1/customers/search")


ROUTES = [
    Route("POST", "/v1/customers", create),
    Route("GET", "/v1/customers", listed),
    Route("GET", "/v1/customers/search", search),
    Route("GET", "/v1/customers/{id}", retriever("customer")),
    Route("POST", "/v1/customers/{id}", update),
    Route("DELETE", "/v1/customers/{id}", delete),
]
