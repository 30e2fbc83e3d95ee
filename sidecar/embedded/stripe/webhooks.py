"""Webhook endpoints, and the signature of what is delivered to them.

Source: https://docs.stripe.com/api/webhook_endpoints, https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from sidecar.embedded.stripe import fields
from sidecar.embedded.stripe.account import API_VERSION, Account, Object
from sidecar.embedded.stripe.call import ONLY_EXPAND, Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.fields import Fields, array, boolean, choice, text
from sidecar.embedded.stripe.listing import page

COUNT_MAX = 16
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/.*)?")
CREATE = Fields(
    {
        "api_version": choice(API_VERSION),
        "description": fields.clearable(text()),
        "enabled_events": array(text(), 250),
        "metadata": fields.metadata,
        "url": text(),
        **fields.EXPAND,
    },
    ["enabled_events", "url"],
)
UPDATE = Fields(
    {
        "description": fields.clearable(text()),
        "disabled": boolean,
        "enabled_events": array(text(), 250),
        "metadata": fields.metadata,
        "url": text(),
        **fields.EXPAND,
    }
)
LIST = Fields(fields.PAGE)


def sign(body: bytes, keys: list[str], now_s: int) -> str:
    """The Stripe-Signature header: one v1 for each secret that is in force."""
    signed = f"{now_s}.".encode() + body
    found = [hmac.new(key.encode(), signed, hashlib.sha256).hexdigest() for key in keys]
    return ",".join([f"t={now_s}", *(f"v1={one}" for one in found)])


def add(account: Account, url: str, keys: list[str], enabled: list[str] | None = None, *, thin: bool = True) -> Object:
    """Register an endpoint; it may only be on loopback, where nobody real is told anything."""
    return account.add(
        "webhook_endpoint",
        {
            "api_version": API_VERSION,
            "application": None,
            "description": None,
            "enabled_events": enabled or ["*"],
            "metadata": {},
            "status": "enabled",
            "url": _checked(url),
            "_secrets": keys,
            "_thin": thin,
        },
    )


def put(account: Account, url: str, keys: list[str], enabled: list[str] | None = None, name: str = "") -> Object:
    """Register an endpoint, or change the one of this name, or without a name of this url."""
    for endpoint in account.table("webhook_endpoint").values():
        if (name and endpoint["description"] == name) or (not name and endpoint["url"] == url):
            endpoint.update(url=_checked(url), enabled_events=enabled or ["*"], _secrets=keys)
            account.changes += 1
            return endpoint
    made = add(account, url, keys, enabled)
    made["description"] = name or None
    return made


def _checked(url: str) -> str:
    if not _LOOPBACK.fullmatch(url):
        raise bad_parameter("Invalid URL: the stand-in delivers to loopback only.", "url", "url_invalid")
    return url


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    if len(account.table("webhook_endpoint")) >= COUNT_MAX:
        raise Refused(f"You have reached the maximum of {COUNT_MAX} webhook endpoints.")
    secret = "whsec_" + secrets.token_urlsafe(24)
    # As with the real ones, thin events need an event destination: only POST /_webhooks makes one here.
    endpoint = add(account, values["url"], [secret], values["enabled_events"], thin=False)
    endpoint["description"] = values.get("description")
    endpoint["metadata"] = fields.merged({}, values.get("metadata"))
    return {**shown(account, endpoint, values), "secret": secret}


def update(account: Account, call: Call) -> Object:
    values = UPDATE.read(call.params)
    endpoint = account.get("webhook_endpoint", call.id, in_path=True)
    for name in ("description", "enabled_events", "url"):
        if name in values:
            endpoint[name] = _checked(values[name]) if name == "url" else values[name]
    if "disabled" in values:
        endpoint["status"] = "disabled" if values["disabled"] else "enabled"
    endpoint["metadata"] = fields.merged(endpoint["metadata"], values.get("metadata"))
    account.changes += 1
    return shown(account, endpoint, values)


def delete(account: Account, call: Call) -> Object:
    ONLY_EXPAND.read(call.params)
    account.get("webhook_endpoint", call.id, in_path=True)
    del account.table("webhook_endpoint")[call.id]
    return {"id": call.id, "object": "webhook_endpoint", "deleted": True}


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    return page(account, account.table("webhook_endpoint").values(), values, "/v1/webhook_endpoints")


def wants(endpoint: Object, event: Object) -> bool:
    """Whether an event goes to an endpoint."""
    if endpoint["status"] != "enabled":
        return False
    if event["object"] != "event" and not endpoint["_thin"]:
        return False
    return "*" in endpoint["enabled_events"] or event["type"] in endpoint["enabled_events"]


ROUTES = [
    Route("POST", "/v1/webhook_endpoints", create),
    Route("GET", "/v1/webhook_endpoints", listed),
    Route("GET", "/v1/webhook_endpoints/{id}", retriever("webhook_endpoint")),
    Route("POST", "/v1/webhook_endpoints/{id}", update),
    Route("DELETE", "/v1/webhook_endpoints/{id}", delete),
]
