"""What a writer spent in seconds and minutes that are over: they may come back, with a plan or a step of the clock.

Redis merges this writer's cumulative spending with max, so it must never start again from 0 in one period.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.enforcement.keyed import Few, Keyed
from sidecar.memo import remember, shared

if TYPE_CHECKING:
    from sidecar.enforcement.limit_period import LimitPeriod

# Redis keeps a second's or a minute's limit for a minute after its end.
SMALL_KEPT_MS = 180_000


class Spent:
    """What this writer spent in a second or minute that is over; ``noted``: in which SMALL_KEPT_MS (monotonic)."""

    __slots__ = ("noted", "own", "period")

    def __init__(self, period: LimitPeriod, own: int, noted: int) -> None:
        self.period = period
        self.own = own
        self.noted = noted

    @property
    def id(self) -> tuple[str, int]:
        """The limit and the start of its period."""
        return self.period.id, self.period.start_s


# Tenants that spent the same in the same minutes share what is remembered of it.
SHARED_MAX = 4_096
_spent: dict[tuple[LimitPeriod, int, int], Spent] = {}
_kept: dict[Few[Spent], Few[Spent]] = {}


def noted(kept: Keyed[Spent], period: LimitPeriod, own: int, now_ms: int) -> Keyed[Spent]:
    """The same with what was spent of that one; ``now_ms``: monotonic."""
    # By a clock that never steps: the wall clock may come back from far ahead, to a minute it was in before.
    lately = now_ms // SMALL_KEPT_MS
    key = period, own, lately
    kept = kept.put(_spent.get(key) or remember(_spent, key, Spent(*key), SHARED_MAX))
    # Looked through each time that they have doubled, so that a tenant of a week keeps no more than one of minutes.
    if not len(kept) & (len(kept) - 1):
        for one in [one for one in kept.values() if lately - one.noted > 1]:
            kept = kept.without(one.id)
    return shared(_kept, kept, SHARED_MAX) if isinstance(kept, Few) else kept
