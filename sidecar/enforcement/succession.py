"""What follows a second or a minute: the next one, whose lease is asked for before it begins, or nothing.

Or every request of every tenant with such a limit would wait for Redis in the moment in which it begins. Of one that
nobody asks for nothing is said: what Redis set aside in it ends with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.enforcement.lease import NO_LEASE
from sidecar.enforcement.limit_period import LimitPeriod, limit_period
from sidecar.enforcement.limit_state import LimitState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.enforcement.keyed import Keyed
    from sidecar.enforcement.spent import Spent

# How soon the period begins whose lease is wanted: syncs are up to 3 s apart, and clocks are read in whole seconds.
AHEAD_S = 4
# Whose limit of a second or a minute was not used for longer probably asks for none of the next one.
LEASED_ON_PERIODS = 2


def look_ahead(states: Iterable[LimitState], before: Keyed[Spent], now_s: int, now_ms: int) -> None:
    """Of limits that are being spent from, want leases of the period that is about to begin, and keep them until then.

    ``now_s``: wall; ``now_ms``: monotonic. What is there already counts as used, or it would be given back. ``before``:
    what was spent of periods that were over: the clock may have stepped back, and Redis may have lost what it was told.
    """
    for state in states:
        period = state.period
        spending = period.small and period.leased and state.own != state.own_reported
        if not spending or not period.start_s <= now_s < period.end_s <= now_s + AHEAD_S:
            continue
        lease = state.own_lease()
        if lease.ahead is None:
            lease.ahead = LimitState(_following(period))
            lease.ahead.succeed(state, now_ms)
            spent = before.get((period.id, period.end_s))
            if spent is not None:
                lease.ahead.own = spent.own
        elif lease.ahead.left:
            lease.ahead.own_lease().own_changed_ms = now_ms


def taken_ahead(state: LimitState, period: LimitPeriod) -> LimitState | None:
    """The limit in that period, if its lease was asked for ahead; from now on it stands on its own."""
    ahead = state.lease.ahead
    if ahead is None or not ahead.period.like(period):
        return None
    state.lease.ahead = None
    return ahead


def holding(state: LimitState) -> bool:
    """Whether it has a lease, or one in the period that follows."""
    return bool(state.left or (state.lease.ahead is not None and state.lease.ahead.left))


def settled(state: LimitState) -> bool:
    """Whether Redis knows all of a limit, and nothing is asked for: what little is left can end with the period."""
    lease, period = state.lease, state.period
    if not period.leased or not state.known or state.own != state.own_reported:
        return False
    asking = lease.in_flight or lease.need or lease.renewing or lease.watched
    without_redis = lease.refused or lease.outage_used or lease.uncovered
    return lease.shared or not (asking or without_redis or state.left > period.first)


def at_rest(state: LimitState) -> bool:
    """Whether nothing need be said of it, and its lease is shared with others."""
    return state.lease.shared and settled(state)


def has_next(state: LimitState, now_s: int) -> bool:
    """Whether the limit that follows is there already, with all that Redis says of it, and is not over."""
    ahead = state.lease.ahead
    return ahead is not None and settled(ahead) and not ahead.period.over(now_s)


def goes_on(state: LimitState, now_ms: int) -> bool:
    """Whether a limit was used so lately that a lease in the next period is worth asking for."""
    length_s = state.period.end_s - state.period.start_s
    return now_ms - state.lease.own_changed_ms < LEASED_ON_PERIODS * length_s * 1000


def lapse(state: LimitState) -> None:
    """Forget the lease of a period that is over and of which nothing has to be said."""
    state.take_in()
    state.lease = NO_LEASE


def _following(period: LimitPeriod) -> LimitPeriod:
    start_s, length_s = period.end_s, period.end_s - period.start_s
    return limit_period(period.rule, period.id, start_s, start_s + length_s, leased=True)
