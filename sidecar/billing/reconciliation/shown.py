"""What Stripe's meter event summaries show of a lane, read at a bounded pace.

Guarantees: no more calls a second than given, all together; a call that Stripe did not answer is tried again a few
            times. Usage of a metric whose meter was replaced is added up over all its meters.
Gives up:   the newest events: summaries follow Stripe's answers with some delay.
Source:     https://docs.stripe.com/api/billing/meter-event-summary/list
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Literal

from sidecar.billing.reconciliation.drift import Lane, Seen, seen
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.errors import StripeUnavailable

if TYPE_CHECKING:
    from stripe.params.billing import MeterEventSummaryListParams

TRIES = 5
CALLS_PER_S = 20  # Stripe takes 100 reads a second live and 25 in a sandbox, for everything
PER_PAGE = 100


class Shown:
    """Reads summaries of one account."""

    def __init__(self, api: StripeApi, *, calls_per_s: int = CALLS_PER_S, pause_s: float = 1) -> None:
        self._list = api.v1.billing.meters.event_summaries.list_async
        self._step_s = 1 / calls_per_s
        self._pause_s = pause_s
        self._next_s = 0.0

    async def total(self, lane: Lane, from_s: int, to_s: int) -> Seen:
        """The sum of a span of whole minutes."""
        values = [value for meter in lane.meters for _, value in await self._read(meter, lane.customer, from_s, to_s)]
        return seen(values, lane.scale)

    async def grouped(self, lane: Lane, by: Literal["hour", "day"], from_s: int, to_s: int) -> dict[int, Seen]:
        """The sums of hours or days of UTC, by their start; those without events are missing."""
        found: dict[int, list[float]] = {}
        for meter in lane.meters:
            for start_s, value in await self._read(meter, lane.customer, from_s, to_s, by):
                found.setdefault(start_s, []).append(value)
        return {start_s: seen(values, lane.scale) for start_s, values in found.items()}

    async def _read(
        self, meter: str, customer: str, from_s: int, to_s: int, by: Literal["hour", "day"] | None = None
    ) -> list[tuple[int, float]]:
        params: MeterEventSummaryListParams = {
            "customer": customer,
            "start_time": from_s,
            "end_time": to_s,
            "limit": PER_PAGE,
        }
        if by is not None:
            params["value_grouping_window"] = by
        for attempt in range(1, TRIES):
            try:
                return await self._pages(meter, params)
            except StripeUnavailable:
                await asyncio.sleep(self._pause_s * 2**attempt * random.uniform(0.5, 1))
        return await self._pages(meter, params)

    async def _pages(self, meter: str, params: MeterEventSummaryListParams) -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        more = True
        while more:
            await self._turn()
            with errors():
                page = await self._list(meter, params)
            found += [(item.start_time, item.aggregated_value) for item in page.data]
            more = page.has_more and bool(page.data)
            if more:
                params = {**params, "starting_after": page.data[-1].id}
        return found

    async def _turn(self) -> None:
        """Wait for the next free moment."""
        now_s = asyncio.get_running_loop().time()
        self._next_s = max(now_s, self._next_s + self._step_s)
        await asyncio.sleep(self._next_s - now_s)
