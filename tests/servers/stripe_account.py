"""A Stripe account whose objects a test writes itself: in any state, at any time, read through the real SDK.

The stand-in under sidecar/embedded/stripe lives by Stripe's rules; here a test says what the account says, so that
every status and every order of changes can be had. Counts what was asked, and fails where it is told to.
"""

from __future__ import annotations

import copy
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestServer

KEY = "sk_test_secret_of_the_scripted_account"
START_S = 1_800_000_000


class ScriptedAccount:
    """Objects by id; ``failing`` answers those ids with a status instead."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.failing: dict[str, int] = {}
        app = web.Application()
        app.router.add_get("/v1/{kind:.*}/{id}", self._answer)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    def customer(self, id_: str, tenant: str = "") -> None:
        metadata = {"tenant": tenant} if tenant else {}
        self.objects[id_] = {"id": id_, "object": "customer", "metadata": metadata, "created": START_S}

    def subscription(self, id_: str, customer: str, plan: str, status: str = "active", **more: Any) -> None:
        before = self.objects.get(id_, {})
        self.objects[id_] = {
            "id": id_,
            "object": "subscription",
            "customer": customer,
            "status": status,
            "created": before.get("created", START_S),
            "billing_cycle_anchor": before.get("billing_cycle_anchor", START_S),
            "currency": "usd",
            "metadata": {},
            "cancel_at_period_end": False,
            "items": {"object": "list", "data": [_item(f"si_{id_}", plan)]},
            **more,
        }

    def invoice(self, id_: str, customer: str, subscription: str, status: str, **more: Any) -> None:
        made_s = self.objects.get(id_, {}).get("created", START_S)
        owed = 0 if status in ("paid", "void") else 9900
        self.objects[id_] = {
            "id": id_,
            "object": "invoice",
            "customer": customer,
            "status": status,
            "created": made_s,
            "currency": "usd",
            "number": f"N-{id_}",
            "billing_reason": "subscription_cycle",
            "total": 9900,
            "subtotal": 9900,
            "amount_due": 9900,
            "amount_paid": 9900 - owed,
            "amount_remaining": owed,
            "attempt_count": 1,
            "period_start": made_s,
            "period_end": made_s,
            "status_transitions": {"finalized_at": made_s if status != "draft" else None},
            "hosted_invoice_url": f"https://invoice.test/{id_}",
            "invoice_pdf": f"https://invoice.test/{id_}.pdf",
            "parent": {"type": "subscription_details", "subscription_details": {"subscription": subscription}},
            "lines": {"object": "list", "has_more": False, "data": [_line(f"il_{id_}", 9900)]},
            **more,
        }

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        self.asked.append(name)
        if name in self.failing:
            status = self.failing[name]
            error = {"type": "invalid_request_error", "message": f"Invalid API Key provided: {KEY}"}
            return web.json_response({"error": error}, status=status)
        found = copy.deepcopy(self.objects.get(name))
        if found is None:
            error = {
                "type": "invalid_request_error",
                "code": "resource_missing",
                "message": f"No such object: '{name}'",
            }
            return web.json_response({"error": error}, status=404)
        return web.json_response(found)

    async def __aenter__(self) -> Self:
        await self.server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()


def event(id_: str, kind: str, about: dict[str, Any], made_s: int = START_S) -> dict[str, Any]:
    """A snapshot event; its payload is what the object was then."""
    return {"id": id_, "object": "event", "type": kind, "created": made_s, "data": {"object": copy.deepcopy(about)}}


def _item(id_: str, plan: str) -> dict[str, Any]:
    price = {
        "id": f"price_{plan}",
        "object": "price",
        "metadata": {"plan": plan},
        "recurring": {"interval": "month", "interval_count": 1},
    }
    return {
        "id": id_,
        "object": "subscription_item",
        "price": price,
        "quantity": 1,
        "current_period_start": START_S,
        "current_period_end": START_S + 30 * 86_400,
    }


def _line(id_: str, amount: int) -> dict[str, Any]:
    return {
        "id": id_,
        "object": "line_item",
        "amount": amount,
        "currency": "usd",
        "quantity": 1,
        "description": "Standard",
        "period": {"start": START_S, "end": START_S + 30 * 86_400},
        "pricing": {"price_details": {"price": "price_standard"}, "unit_amount_decimal": str(amount)},
    }
