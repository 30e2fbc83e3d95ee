"""Carries out one intention at Stripe, from whatever part of it is done already.

Guarantees: every step is decided by what Stripe has at that moment, so the same intention may be carried out again
            after any number of crashes: what is done is not done twice, and the rest follows. Calls with the same
            parameters have the same idempotency key, so one whose answer was lost takes effect once. Usage is sent
            before prices are exchanged or a subscription ends.
Gives up:   taking back what is done when Stripe refuses the rest: the caller is told, and ``touched`` says so.
Source: https://docs.stripe.com/api/subscriptions/update, https://docs.stripe.com/api/subscription_schedules
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from sidecar.billing.flush_requests import FlushTenant, NobodyFlushes
from sidecar.billing.objects import PlanPrices
from sidecar.billing.stripe_api import errors
from sidecar.billing.subscriptions import items, subscriptions
from sidecar.billing.subscriptions.intentions import Intention, Proration, Wish
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.standing import ENDED
from sidecar.errors import Conflict, NotFound, StripeBusy, StripeRefused, StripeUnavailable

REPLAYS_MAX = 20
STEPS_MAX = 10
UNDER_WAY = 409
Raw = dict[str, Any]


class Execution:
    """One intention of one tenant. ``touched``: Stripe did, or may have done, part of it."""

    def __init__(self, mirror: Mirror, flush: FlushTenant, tenant: str, intention: Intention) -> None:
        self.touched = False
        self._mirror = mirror
        self._v1 = mirror.api.v1
        self._flush = flush
        self._tenant = tenant
        self._intention = intention

    async def change(self, prices: PlanPrices, wish: Wish) -> tuple[int, Raw]:
        """Exchange the items now; metered ones always with proration: `none` would leave usage until now unbilled.

        So a change without proration takes two calls, the metered items first.
        """
        wanted, flushed = items.new_items(prices, wish), False
        for _ in range(STEPS_MAX):
            seen_by, raw = await self._fetched()
            base, metered = items.exchanged(await self._items(raw), wanted)
            plan = str((raw.get("metadata") or {}).get("plan") or "")
            if not (base or metered or raw.get("schedule") or _stays(raw)) and plan == wish.plan:
                return seen_by, raw
            if metered and not flushed:
                await self._sent()
                flushed = True
                continue
            if await self._released(raw):
                continue
            how: Proration = self._intention.proration
            if how == "none" and metered:
                how, base = "create_prorations", []
            exchange = {"items": [*base, *metered], "proration_behavior": how} if base or metered else {}
            await self._updated({**exchange, **_stays(raw), "metadata": {"plan": wish.plan}})
        raise self._stuck()

    async def change_later(self, prices: PlanPrices, wish: Wish) -> tuple[int, Raw]:
        """A schedule of two phases: what there is until the period's end, then the new plan, then free of schedules."""
        wanted = items.new_items(prices, wish)
        for _ in range(STEPS_MAX):
            seen_by, raw = await self._fetched()
            schedule = raw.get("schedule")
            if self._intention.metrics:
                there = await self._items(items.comes(schedule) or raw)
                wanted = items.repriced(there, {name: prices.metered[name] for name in self._intention.metrics})
            if not isinstance(schedule, dict):
                if stays := _stays(raw):
                    await self._updated(stays)
                    continue
                create = self._v1.subscription_schedules.create_async
                await self._call("schedule", create, {"from_subscription": self._intention.subscription})
                continue
            waiting = items.coming(schedule)
            right = len(waiting) == 1 and items.is_phase(waiting[0], wanted)
            if right and schedule.get("end_behavior") == "release":
                return seen_by, raw
            running = schedule.get("current_phase") or {}
            phases = [
                {
                    "items": items.of_phase(await self._items(raw)),
                    "start_date": int(running["start_date"]),
                    "end_date": int(running["end_date"]),
                },
                {"items": wanted, "proration_behavior": "none", "metadata": {"plan": wish.plan}},
            ]
            params = {"end_behavior": "release", "proration_behavior": "none", "phases": phases}
            await self._call("phases", self._v1.subscription_schedules.update_async, str(schedule["id"]), params)
        raise self._stuck()

    async def cancel(self, *, later: bool) -> tuple[int, Raw]:
        """End the subscription: now, with an invoice of what was used, or at the end of its period."""
        flushed = False
        for _ in range(STEPS_MAX):
            seen_by, raw = await self._fetched(ended=True)
            if raw["status"] in ENDED or (later and raw.get("cancel_at_period_end") and not raw.get("schedule")):
                return seen_by, raw
            if not flushed:
                await self._sent()
                flushed = True
                continue
            if await self._released(raw):
                continue
            if later:
                await self._updated({"cancel_at_period_end": True})
                continue
            params = {"invoice_now": True, "prorate": self._intention.proration != "none"}
            await self._call("cancel", self._v1.subscriptions.cancel_async, self._intention.subscription, params)
        raise self._stuck()

    async def go_on(self) -> tuple[int, Raw]:
        """Take back what waits for the end of the period."""
        for _ in range(STEPS_MAX):
            seen_by, raw = await self._fetched()
            if await self._released(raw):
                continue
            stays = _stays(raw)
            if not stays:
                return seen_by, raw
            await self._updated(stays)
        raise self._stuck()

    async def _fetched(self, *, ended: bool = False) -> tuple[int, Raw]:
        seen_by = await self._mirror.look()
        with errors():
            found = await self._v1.subscriptions.retrieve_async(self._intention.subscription, {"expand": ["schedule"]})
        raw: Raw = found.to_dict()
        if raw["status"] in ENDED and not ended:
            raise NotFound(f"the subscription {raw['id']} of {self._tenant!r} has ended meanwhile; subscribe anew")
        return seen_by, raw

    async def _items(self, raw: Mapping[str, Any]) -> list[subscriptions.Item]:
        async with self._mirror.ledger.transaction() as tx:
            return await subscriptions.items_of(tx, raw)

    async def _sent(self) -> None:
        """Send what was used so far under the terms it was used by; StripeBusy when some of it has to wait."""
        try:
            left = await self._flush(self._tenant)
        except NobodyFlushes:
            if self._intention.force:
                return
            raise
        if left and not self._intention.force:
            told = f"{left} deltas of usage of {self._tenant!r} could not be sent yet"
            raise StripeBusy(f"{told}, so nothing was changed; try again, or leave it with force")

    async def _released(self, raw: Raw) -> bool:
        """Free a subscription of its schedule, if it has one: Stripe refuses other changes until then."""
        schedule = subscriptions.named(raw.get("schedule"))
        if schedule:
            await self._call("release", self._v1.subscription_schedules.release_async, schedule, {})
        return bool(schedule)

    async def _updated(self, params: Raw) -> None:
        await self._call("update", self._v1.subscriptions.update_async, self._intention.subscription, params)

    async def _call(self, step: str, call: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """One call that changes something. An old refusal that Stripe repeats is of a call that has ended: ask anew."""
        asked = hashlib.sha256(msgspec.json.encode([step, arguments], order="sorted")).hexdigest()[:24]
        for number in range(REPLAYS_MAX):
            try:
                with errors():
                    await call(*arguments, {"idempotency_key": f"quota-{self._intention.id}-{asked}-{number}"})
            except StripeRefused as error:
                if error.status == UNDER_WAY:
                    self.touched = True
                    raise StripeUnavailable(str(error)) from error
                if not error.replayed:
                    raise
            except StripeUnavailable as error:
                self.touched |= not isinstance(error, StripeBusy)
                if not error.replayed:
                    raise
            else:
                self.touched = True
                return
        raise Conflict(f"Stripe repeats {REPLAYS_MAX} old refusals of this change; try again tomorrow")

    def _stuck(self) -> Conflict:
        told = "somebody else changes the subscription at the same time; look at it, and try again"
        return Conflict(f"{self._intention.subscription} of {self._tenant!r} does not become what is wanted: {told}")


def _stays(raw: Raw) -> Raw:
    """Parameters that take back a cancellation that waits; none when there is none."""
    if raw.get("cancel_at_period_end"):
        return {"cancel_at_period_end": False}
    return {"cancel_at": ""} if raw.get("cancel_at") else {}
