"""Products.

Source: https://docs.stripe.com/api/products
"""

from __future__ import annotations

from typing import Any

from sidecar.embedded.stripe import fields, searching
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import ONLY_EXPAND, Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.fields import Fields, Kind, boolean, clearable, text
from sidecar.embedded.stripe.listing import created_within, page
from sidecar.embedded.stripe.rendering import render

COMMON: dict[str, Kind] = {
    "active": boolean,
    "description": clearable(text(40_000)),
    "metadata": fields.metadata,
    "name": text(),
    "statement_descriptor": text(22),
    "tax_code": clearable(text()),
    "unit_label": clearable(text(12)),
    "url": clearable(text()),
    **fields.EXPAND,
}
CREATE = Fields({**COMMON, "id": text(), "type": fields.choice("good", "service")}, ["name"])
UPDATE = Fields({**COMMON, "default_price": text()})
LIST = Fields({"active": boolean, "ids": fields.array(text()), "url": text(), **fields.CREATED, **fields.PAGE})
PLAIN = ("active", "default_price", "description", "name", "statement_descriptor", "tax_code", "unit_label", "url")


def make(account: Account, values: dict[str, Any]) -> Object:
    """Add a product; also for price and session calls that bring product data along."""
    identity = values.get("id")
    if identity is not None and identity in account.table("product"):
        raise Refused("Product already exists.", code="resource_already_exists", param="id")
    product = account.add(
        "product",
        {
            "id": identity,
            "active": True,
            "default_price": None,
            "description": None,
            "images": [],
            "marketing_features": [],
            "metadata": {},
            "name": "",
            "package_dimensions": None,
            "shippable": None,
            "statement_descriptor": None,
            "tax_code": None,
            "type": values.get("type", "service"),
            "unit_label": None,
            "updated": account.now,
            "url": None,
        },
    )
    _apply(product, values)
    account.emit("product.created", render(account, product))
    return product


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    return shown(account, make(account, values), values)


def update(account: Account, call: Call) -> Object:
    values = UPDATE.read(call.params)
    product = account.get("product", call.id, in_path=True)
    if (
        "default_price" in values
        and account.get("price", values["default_price"], "default_price")["product"] != call.id
    ):
        raise Refused("The price specified does not belong to this product.", param="default_price")
    before = render(account, product)
    _apply(product, values)
    previous = {name: old for name, old in before.items() if product.get(name) != old}
    if previous:
        product["updated"] = account.now
        account.emit("product.updated", render(account, product), previous)
    account.changes += 1
    return shown(account, product, values)


def _apply(product: Object, values: dict[str, Any]) -> None:
    for name in PLAIN:
        if name in values:
            product[name] = values[name]
    product["metadata"] = fields.merged(product["metadata"], values.get("metadata"))


def delete(account: Account, call: Call) -> Object:
    ONLY_EXPAND.read(call.params)
    product = account.get("product", call.id, in_path=True)
    if any(price["product"] == call.id for price in account.table("price").values()):
        raise Refused("This product cannot be deleted because it has one or more user-created prices.", param="id")
    del account.table("product")[call.id]
    account.emit("product.deleted", render(account, product))
    return {"id": call.id, "object": "product", "deleted": True}


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    found = (
        product
        for product in account.table("product").values()
        if values.get("active", product["active"]) == product["active"]
        and values.get("url", product["url"]) == product["url"]
        and ("ids" not in values or product["id"] in values["ids"])
        and created_within(product, values)
    )
    return page(account, found, values, "/v1/products")


def search(account: Account, call: Call) -> Object:
    return searching.search(account, call, "product", "/v1/products/search")


ROUTES = [
    Route("POST", "/v1/products", create),
    Route("GET", "/v1/products", listed),
    Route("GET", "/v1/products/search", search),
    Route("GET", "/v1/products/{id}", retriever("product")),
    Route("POST", "/v1/products/{id}", update),
    Route("DELETE", "/v1/products/{id}", delete),
]
