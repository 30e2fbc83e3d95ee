"""What tests may do to the stand-in, and everything it was told.

`GET /_state`, `GET /_totals`, `POST /_faults`, `DELETE /_faults`, `POST /_clock`, `POST /_options` and what
docs/stripe-standin.md lists besides. No key is needed: the listener is on loopback.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from sidecar.embedded.stripe import checkout, event_log, webhooks
from sidecar.embedded.stripe.account import Account, Options
from sidecar.embedded.stripe.clock import duration_ms
from sidecar.embedded.stripe.delivery import Deliveries
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.faults import Faults
from sidecar.embedded.stripe.rendering import render

Control = Callable[[dict[str, Any]], Awaitable[Any]]


class Controls:
    """The paths that begin with an underscore."""

    def __init__(self, account: Account, faults: Faults, deliveries: Deliveries) -> None:
        self._account = account
        self._faults = faults
        self._deliveries = deliveries
        self.paths: dict[tuple[str, str], Control] = {
            ("GET", "/_health"): self._health,
            ("GET", "/_state"): self._state,
            ("GET", "/_totals"): self._totals,
            ("POST", "/_faults"): self._add_faults,
            ("GET", "/_faults"): self._shown_faults,
            ("DELETE", "/_faults"): self._clear_faults,
            ("POST", "/_clock"): self._move_clock,
            ("GET", "/_clock"): self._shown_clock,
            ("POST", "/_options"): self._set_options,
            ("POST", "/_checkout"): self._check_out,
            ("POST", "/_event"): self._tell_event,
            ("POST", "/_webhooks"): self._add_webhook,
            ("POST", "/_redeliver"): self._redeliver,
            ("POST", "/_settle"): self._settle,
        }

    async def handle(self, request: web.BaseRequest) -> web.Response:
        control = self.paths.get((request.method, request.path))
        if control is None:
            known = sorted(f"{method} {path}" for method, path in self.paths)
            return _json({"error": f"no such control; there are {', '.join(known)}"}, 404)
        try:
            body = await request.read()
            given = msgspec.json.decode(body) if body else dict(request.query)
            return _json(await control(given))
        except (ValueError, KeyError, TypeError, Refused) as error:
            return _json({"error": f"{type(error).__name__}: {error}"}, 400)

    async def _health(self, _: dict[str, Any]) -> Any:
        return {"stripe": "stand-in", "now": self._account.clock.now_s()}

    async def _add_faults(self, given: Any) -> Any:
        self._faults.add(given)
        return self._faults.told()

    async def _shown_faults(self, _: dict[str, Any]) -> Any:
        return self._faults.told()

    async def _clear_faults(self, _: dict[str, Any]) -> Any:
        self._faults.clear()
        return []

    async def _shown_clock(self, _: dict[str, Any]) -> Any:
        return {"now": self._account.clock.now_s(), "own_ms": self._account.clock.own_ms}

    async def _move_clock(self, given: dict[str, Any]) -> Any:
        self._account.clock.advance(duration_ms(given["advance"]))
        self._account.catch_up()
        self._account.changes += 1
        return await self._shown_clock({})

    async def _set_options(self, given: dict[str, Any]) -> Any:
        known = msgspec.to_builtins(self._account.options)
        self._account.options = msgspec.convert({**known, **given}, Options)
        self._account.changes += 1
        return self._account.options

    async def _check_out(self, given: dict[str, Any]) -> Any:
        """Complete a session as a person would: ``{"session": id, "card": "pm_card_visa"}``; card "" is none."""
        self._account.catch_up()
        return checkout.complete(self._account, given["session"], given.get("card", "pm_card_visa"))

    async def _tell_event(self, given: dict[str, Any]) -> Any:
        """Tell an event that nothing here makes: ``{"type", "object"}``, or thin ``{"type", "related", "data"}``."""
        if "object" in given:
            return self._account.emit(given["type"], given["object"])
        return event_log.tell_thin(self._account, given["type"], given.get("related"), given.get("data", {}))

    async def _add_webhook(self, given: dict[str, Any]) -> Any:
        """Deliver to one more endpoint, thin events too: ``{"url", "secrets": [...], "enabled_events": [...]}``.

        With a ``name``, the endpoint of that name is changed instead, if there is one.
        """
        name = given.get("name", "")
        found = webhooks.put(self._account, given["url"], given["secrets"], given.get("enabled_events"), name)
        return render(self._account, found)

    async def _redeliver(self, given: dict[str, Any]) -> Any:
        """Deliver again: ``{"times": 2, "shuffle": seed, "ids": [...]}``, each of them optional."""
        count = self._deliveries.redeliver(
            times=given.get("times", 1), shuffle_seed=given.get("shuffle"), ids=given.get("ids")
        )
        return {"deliveries": count}

    async def _settle(self, given: dict[str, Any]) -> Any:
        """Wait until every delivery has ended: ``{"within_s": 10}``."""
        return {"settled": await self._deliveries.settle(float(given.get("within_s", 10)))}

    async def _totals(self, _: dict[str, Any]) -> Any:
        account = self._account
        account.catch_up()
        names = {meter["id"]: meter["event_name"] for meter in account.table("billing.meter").values()}
        return [{"event_name": names[total["meter"]], **total} for total in account.metering.totals()]

    async def _state(self, given: dict[str, Any]) -> Any:
        """Everything, or with ``?only=customers,meter_events`` some of it."""
        account = self._account
        account.catch_up()
        metering = account.metering
        names = {meter["id"]: meter["event_name"] for meter in account.table("billing.meter").values()}
        parts: dict[str, Callable[[], Any]] = {
            "now": account.clock.now_s,
            "options": lambda: account.options,
            "meter_events": lambda: [
                {**msgspec.structs.asdict(event), "event_name": names[event.meter]} for event in metering.events()
            ],
            "identifiers": lambda: {
                identifier: {"came": metering.came[identifier], "accepted": metering.accepted[identifier]}
                for identifier in {**metering.came, **metering.accepted}
            },
            "refused": lambda: list(metering.refused),
            "faults": self._faults.told,
            **{name: partial(self._objects, kind) for name, kind in _TABLES.items()},
        }
        only = set(filter(None, str(given.get("only", "")).split(",")))
        extra = self._deliveries.told() if not only or only & _DELIVERIES else {}
        unknown = only - set(parts) - _DELIVERIES - {"totals"}
        if unknown:
            raise ValueError(f"the state has no {', '.join(sorted(unknown))}")
        found = {name: read() for name, read in parts.items() if not only or name in only}
        found.update({name: value for name, value in extra.items() if not only or name in only})
        if not only or "totals" in only:
            found["totals"] = await self._totals({})
        return found

    def _objects(self, kind: str) -> list[Any]:
        expand: Any = {"tiers": {}} if kind == "price" else None
        table = self._account.table(kind)
        return [
            render(self._account, item, expand if kind == "price" and "tiers" in item else None)
            for item in table.values()
        ]


_DELIVERIES = {"deliveries", "attempts", "undelivered"}
_TABLES = {
    "customers": "customer",
    "products": "product",
    "prices": "price",
    "meters": "billing.meter",
    "subscriptions": "subscription",
    "schedules": "subscription_schedule",
    "invoices": "invoice",
    "checkout_sessions": "checkout.session",
    "portal_sessions": "billing_portal.session",
    "portal_configurations": "billing_portal.configuration",
    "payment_methods": "payment_method",
    "webhook_endpoints": "webhook_endpoint",
    "events": "event",
    "thin_events": "v2.core.event",
}


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
