"""What a worker's limits come to together, for a scrape: looked through a few at a time, with decisions in between.

Guarantees: a scrape is answered within SOON_S however many tenants there are, and how busy the worker is.
Gives up:   telling a scrape of this moment when that does not suffice: it gets what the last look found, and the next
            one gets what this look finds.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from sidecar.enforcement.lease import NO_LEASE
from sidecar.signals import end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from sidecar.enforcement.exchange import ShardExchange
    from sidecar.telemetry import CoreCounters

log = logging.getLogger(__name__)

LOOKED_AT_ONCE = 64  # limits: some tens of microseconds, in which no request is decided
SOON_S = 0.2

T = TypeVar("T")


class Survey:
    """Sets ``leases_held``, ``lease_units`` and ``degraded_limits``."""

    __slots__ = ("_counters", "_exchanges", "_look")

    def __init__(self, exchanges: Sequence[ShardExchange], counters: CoreCounters) -> None:
        self._exchanges = exchanges
        self._counters = counters
        self._look: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Look through all limits, or wait for the look under way; no longer than SOON_S. Raises what it raised."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._through(), name="survey")
            self._look.add_done_callback(_ended)
        done, _ = await asyncio.wait([self._look], timeout=SOON_S)
        for look in done:
            look.result()

    async def close(self) -> None:
        """End a look that is under way."""
        if self._look is not None:
            await end([self._look])

    async def _through(self) -> None:
        held = units = degraded = 0
        async for lefts in _unhurried(leases(exchange) for exchange in self._exchanges):
            held += len(lefts) - lefts.count(0)
            units += sum(lefts)
        async for some in _unhurried(degraded_limits(exchange) for exchange in self._exchanges):
            degraded += sum(some)
        counters = self._counters
        counters.leases_held, counters.lease_units, counters.degraded_limits = held, units, degraded


def leases(exchange: ShardExchange) -> Iterator[int]:
    """Units left in each lease in hand, or 0 where there is none. Decisions may come between two."""
    wall_s = exchange.wall_s
    for account in exchange.holding():
        for state in tuple(account.limits.values()):
            lease = state.lease
            if lease is NO_LEASE:
                yield 0
                continue
            left = lease.units - state.pending if lease.shared else state.left  # the same, but for many
            yield left if left > 0 and not state.period.over(wall_s) else 0
            if lease.ahead is not None:
                yield max(0, lease.ahead.left)


def degraded_limits(exchange: ShardExchange) -> Iterator[bool]:
    """Whether each limit was decided by its outage policy since Redis last answered. Decisions may come between."""
    for account in exchange.unreported():
        yield from (bool(state.outage_used or state.lease.refused) for state in tuple(account.limits.values()))


def _ended(look: asyncio.Task[None]) -> None:
    """Whoever asked may have gone on: what went wrong is a fault of ours and must be seen."""
    if not look.cancelled() and look.exception() is not None:
        log.critical("a look through the limits failed", exc_info=look.exception())


async def _unhurried(parts: Iterable[Iterable[T]]) -> AsyncIterator[list[T]]:
    """Everything in the parts, a few at a time, with decisions in between."""
    everything = chain.from_iterable(parts)
    while some := list(islice(everything, LOOKED_AT_ONCE)):
        yield some
        await asyncio.sleep(0)
