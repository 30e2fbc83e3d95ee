"""Payment methods: the test cards of the documentation, attached to customers.

Guarantees: each test card ends a payment as the documentation says: paid, failed, or waiting for the customer.
Gives up:   numbers, banks and setup intents.
Source: https://docs.stripe.com/testing
"""

from __future__ import annotations

from sidecar.embedded.stripe import fields
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import ONLY_EXPAND, Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.fields import Fields, choice, text
from sidecar.embedded.stripe.listing import page
from sidecar.embedded.stripe.rendering import render

# Test card -> brand, last four digits, and how a payment with it ends ("" as the options say).
TEST_CARDS = {
    "pm_card_visa": ("visa", "4242", ""),
    "pm_card_mastercard": ("mastercard", "4444", ""),
    "pm_card_chargeCustomerFail": ("visa", "0341", "failed"),
    "pm_card_authenticationRequired": ("visa", "3184", "action_required"),
}
ATTACH = Fields({"customer": text(), **fields.EXPAND}, ["customer"])
LIST = Fields({"customer": text(), "type": choice("card"), **fields.PAGE})
OF_CUSTOMER = Fields({"type": choice("card"), **fields.PAGE})


def attached(account: Account, identity: str, customer: str, param: str) -> Object:
    """A test card becomes a payment method of the customer; a known method must be the customer's."""
    if identity in TEST_CARDS:
        brand, last4, outcome = TEST_CARDS[identity]
        method = account.add(
            "payment_method",
            {
                "allow_redisplay": "unspecified",
                "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
                "card": {
                    "brand": brand,
                    "country": "US",
                    "exp_month": 12,
                    "exp_year": 2034,
                    "fingerprint": f"standin{last4}",
                    "funding": "credit",
                    "last4": last4,
                },
                "customer": customer,
                "metadata": {},
                "type": "card",
                "_outcome": outcome,
            },
        )
        account.emit("payment_method.attached", render(account, method))
        return method
    method = account.get("payment_method", identity, param)
    if method["customer"] != customer:
        raise Refused(
            "The customer does not have a payment method with the ID "
            f"{identity}. The payment method must be attached to the customer.",
            param=param,
        )
    return method


def attach(account: Account, call: Call) -> Object:
    values = ATTACH.read(call.params)
    customer = account.get("customer", values["customer"], "customer")["id"]
    known = account.table("payment_method").get(call.id)
    if known is not None and known["customer"] is None:
        raise Refused(
            "This PaymentMethod was previously used without being attached to a Customer or was detached from a "
            "Customer, and may not be used again."
        )
    return shown(account, attached(account, call.id, customer, "id"), values)


def detach(account: Account, call: Call) -> Object:
    values = ONLY_EXPAND.read(call.params)
    method = account.get("payment_method", call.id, in_path=True)
    if method["customer"] is None:
        raise Refused("The payment method you provided is not attached to a customer so detachment is impossible.")
    settings = account.table("customer").get(method["customer"], {}).get("invoice_settings", {})
    if settings.get("default_payment_method") == call.id:
        settings["default_payment_method"] = None
    method["customer"] = None
    account.emit("payment_method.detached", render(account, method))
    return shown(account, method, values)


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    if "customer" in values:
        account.get("customer", values["customer"], "customer")
    found = [
        method
        for method in account.table("payment_method").values()
        if method["customer"] is not None and method["customer"] == values.get("customer", method["customer"])
    ]
    return page(account, found, values, "/v1/payment_methods")


def of_customer(account: Account, call: Call) -> Object:
    values = OF_CUSTOMER.read(call.params)
    customer = account.get("customer", call.id, in_path=True)["id"]
    found = [method for method in account.table("payment_method").values() if method["customer"] == customer]
    return page(account, found, values, f"/v1/customers/{customer}/payment_methods")


ROUTES = [
    Route("GET", "/v1/payment_methods", listed),
    Route("GET", "/v1/payment_methods/{id}", retriever("payment_method")),
    Route("POST", "/v1/payment_methods/{id}/attach", attach),
    Route("POST", "/v1/payment_methods/{id}/detach", detach),
    Route("GET", "/v1/customers/{id}/payment_methods", of_customer),
]
