"""The customer portal: what people may do there, and sessions of it.

Gives up:   the pages themselves, and the default configuration, which a real account has once somebody made it.
Source: https://docs.stripe.com/api/customer_portal/sessions, https://docs.stripe.com/api/customer_portal/configurations
"""

from __future__ import annotations

from sidecar.embedded.stripe import fields
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import bad_parameter
from sidecar.embedded.stripe.fields import Fields, array, boolean, choice, clearable, nested, text
from sidecar.embedded.stripe.listing import page

PORTAL_URL = "https://billing.stripe.invalid/p/session"
KIND = "billing_portal.configuration"
SESSION = Fields(
    {
        "configuration": text(),
        "customer": text(),
        "flow_data": nested(
            Fields(
                {
                    "type": choice("payment_method_update", "subscription_cancel", "subscription_update"),
                    "subscription_cancel": nested(Fields({"subscription": text()}, ["subscription"])),
                    "subscription_update": nested(Fields({"subscription": text()}, ["subscription"])),
                },
                ["type"],
            )
        ),
        "locale": text(),
        "return_url": clearable(text()),
        **fields.EXPAND,
    },
    ["customer"],
)
_SWITCH = nested(Fields({"enabled": boolean}, ["enabled"]))
FEATURES = Fields(
    {
        "customer_update": nested(
            Fields(
                {
                    "enabled": boolean,
                    "allowed_updates": array(choice("address", "email", "name", "phone", "shipping", "tax_id"), 6),
                }
            )
        ),
        "invoice_history": _SWITCH,
        "payment_method_update": _SWITCH,
        "subscription_cancel": nested(
            Fields(
                {
                    "enabled": boolean,
                    "mode": choice("at_period_end", "immediately"),
                    "proration_behavior": choice("always_invoice", "create_prorations", "none"),
                },
                ["enabled"],
            )
        ),
        "subscription_update": nested(Fields({"enabled": boolean})),
    }
)
_PARAMETERS = {
    "default_return_url": clearable(text()),
    "features": nested(FEATURES),
    "metadata": fields.metadata,
    **fields.EXPAND,
}
CREATE = Fields(_PARAMETERS, ["features"])
UPDATE = Fields({**_PARAMETERS, "active": boolean})
LIST = Fields({"active": boolean, "is_default": boolean, **fields.PAGE})


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    made = account.add(
        KIND,
        {
            "active": True,
            "application": None,
            "default_return_url": values.get("default_return_url"),
            "features": values["features"],
            "is_default": False,
            "metadata": values.get("metadata", {}),
            "updated": account.now,
        },
    )
    return shown(account, made, values)


def update(account: Account, call: Call) -> Object:
    found, values = account.get(KIND, call.id, in_path=True), UPDATE.read(call.params)
    given: Object = {name: values[name] for name in ("active", "default_return_url", "features") if name in values}
    found |= {**given, "updated": account.now}
    found["metadata"] = fields.merged(found["metadata"], values.get("metadata"))
    account.changes += 1
    return shown(account, found, values)


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    found = [
        one
        for one in account.table(KIND).values()
        if all(values.get(name, one[name]) == one[name] for name in ("active", "is_default"))
    ]
    return page(account, found, values, "/v1/billing_portal/configurations")


def open_portal(account: Account, call: Call) -> Object:
    values = SESSION.read(call.params)
    customer = account.get("customer", values["customer"], "customer")["id"]
    chosen = values.get("configuration")
    if chosen and not account.get("billing_portal.configuration", chosen, "configuration")["active"]:
        raise bad_parameter("configuration", "This configuration is not active.")
    session = account.add(
        "billing_portal.session",
        {
            "configuration": chosen or "bpc_standin",
            "customer": customer,
            "flow": values.get("flow_data"),
            "locale": values.get("locale"),
            "on_behalf_of": None,
            "return_url": values.get("return_url"),
            "url": "",
        },
    )
    session["url"] = f"{PORTAL_URL}/{session['id']}"
    return shown(account, session, values)


ROUTES = [
    Route("POST", "/v1/billing_portal/sessions", open_portal),
    Route("POST", "/v1/billing_portal/configurations", create),
    Route("GET", "/v1/billing_portal/configurations", listed),
    Route("GET", "/v1/billing_portal/configurations/{id}", retriever(KIND)),
    Route("POST", "/v1/billing_portal/configurations/{id}", update),
]
