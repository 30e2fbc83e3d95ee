"""Lets subscriptions follow overrides of included amounts: with the next period, a change that waits (own_prices.py).

Guarantees: each goes the way of every change of a subscription, so it is finished after a crash, and one at a time.
Gives up:   haste: overrides are looked at once a minute, and one that cannot be followed is tried again later.
"""

from __future__ import annotations

import asyncio
import logging

from sidecar.billing.subscriptions import own_prices
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing
from sidecar.errors import LedgerUnavailable, SidecarError
from sidecar.logs import Transition, fields

ACTOR = "overrides"
LOOK_EVERY_S = 60.0
PUT_OFF_MS = 600_000

log = logging.getLogger(__name__)


class Following:
    """One loop of a process that changes subscriptions."""

    def __init__(self, mirror: Mirror, subscribing: Subscribing) -> None:
        self._mirror = mirror
        self._subscribing = subscribing
        self._not_before_ms: dict[str, int] = {}
        self._state = Transition(log, "included amounts of their own")

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            try:
                await self.follow()
                self._state.good()
            except SidecarError as error:
                self._state.bad(cause=str(error))
            except Exception as error:
                log.exception("overrides could not be followed")
                self._state.bad(cause=type(error).__name__)
            await asyncio.sleep(LOOK_EVERY_S)

    async def follow(self) -> int:
        """Change what has to be; how many subscriptions were."""
        now_ms = self._mirror.clock.monotonic_ms()
        self._not_before_ms = {name: until for name, until in self._not_before_ms.items() if until > now_ms}
        async with self._mirror.ledger.transaction() as tx:
            found = await own_prices.drifted(tx, await self._mirror.catalogue(tx), set(self._not_before_ms))
        changed = 0
        for one in found:
            try:
                wish = one.wish
                await self._subscribing.change(
                    one.tenant, wish.plan, annual=wish.annual, when="period_end", metrics=one.metrics, actor=ACTOR
                )
                changed += 1
            except LedgerUnavailable:
                raise
            except SidecarError as error:
                self._not_before_ms[one.subscription] = now_ms + PUT_OFF_MS
                told = "a subscription cannot follow its tenant's overrides yet"
                log.warning(told, extra=fields(tenant=one.tenant, cause=str(error)))
        return changed
