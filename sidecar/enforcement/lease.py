"""What a writer has of one limit in one period while it spends from it: the lease, and what is being asked for.

A worker has very many limits and few that are in use. So a limit without anything of this kind has NO_LEASE instead,
and those whose leases are at rest share equal ones: of the tenants in one message most are.
Units are base units; times are milliseconds, monotonic.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, NoReturn

from sidecar.enforcement.limit_period import FIRST_PART
from sidecar.memo import remember

if TYPE_CHECKING:
    from sidecar.enforcement.limit_period import LimitPeriod
    from sidecar.enforcement.limit_state import LimitState

LAID_MAX = 4_096
# Times of what rests are kept as coarse as this, so that tenants of many messages share them.
REST_GRAIN_MS = 250
SPACED_TIMES = 3


class Lease:
    """What is in hand of a limit, asked for, or being decided without Redis.

    ``units`` are left but for the limit's ``pending``. ``need``, ``least`` and ``waiting`` are the most and the least
    that one waiting request wants, and what all want. ``ample``: Redis has many more leases of this size to give.
    ``over_ms``: when the included amount was exceeded (Redis' wall time), 0 before; counted limits keep it here, too.
    ``refused``: an outage policy denied something since Redis last answered. ``uncovered``: what is pending was let
    through by an outage policy, so that no ``units`` pay for it. ``watched``: the limit's total matters although this
    writer does not spend from it. ``ahead``: the limit in the second or minute that follows,
    asked for before it begins.
    """

    __slots__ = (
        "ahead",
        "ample",
        "contended_until_ms",
        "held_elsewhere",
        "in_flight",
        "least",
        "need",
        "outage_used",
        "over_ms",
        "own_changed_ms",
        "rate_per_s",
        "refused",
        "renew_at",
        "renewing",
        "reported_ms",
        "target",
        "uncovered",
        "units",
        "waiting",
        "watched",
    )
    shared: ClassVar[bool] = False

    def __init__(self, target: int) -> None:
        self.units = 0
        self.target = target
        self.renew_at = 0
        self.renewing = False
        self.in_flight = False
        self.ample = False
        self.held_elsewhere = 0
        self.need = self.least = self.waiting = 0
        self.rate_per_s = 0
        self.reported_ms = 0
        self.own_changed_ms = 0
        self.contended_until_ms = 0
        self.outage_used = 0
        self.over_ms = 0
        self.refused = False
        self.uncovered = False
        self.watched = False
        self.ahead: LimitState | None = None

    @property
    def quiet(self) -> bool:
        """Whether nothing is asked for, decided without Redis, or to be followed."""
        if self.need or self.renewing or self.contended_until_ms or self.ahead is not None:
            return False
        return not (self.outage_used or self.uncovered or self.refused or self.watched)

    def wanted(
        self, period: LimitPeriod, lease_seconds: int, lease_units_max: int, *, begun: bool, spaced: bool
    ) -> int:
        """Units that would be good to have on top of what is left. ``begun``: some were spent in the period."""
        seconds = lease_seconds * SPACED_TIMES if spaced and self.ample else lease_seconds
        rate = self.rate_per_s * seconds
        if not (begun and self.reported_ms) and period.stop is not None:
            rate = min(rate, period.stop // FIRST_PART)  # as it was in the period before
        self.target = min(max(rate, period.first), lease_units_max)
        want = max(0, self.target - self.units)
        # A lease that is more than half full is not topped up: syncs would grow with the traffic.
        if self.units * (4 if seconds == lease_seconds else 3) > self.target * 2:
            want = 0
        return max(want, self.waiting - self.units)


class SharedLease(Lease):
    """A lease that many limits have in common, so nobody may change it."""

    __slots__ = ()
    shared = True

    def __setattr__(self, name: str, _value: object) -> NoReturn:
        message = f"{name} of a shared lease cannot be set"
        raise AttributeError(message)


def laid(lease: Lease) -> Lease:
    """The shared lease that is equal to this one, of which only what RESTING names is set."""
    key = _resting(lease)
    found = _laid.get(key)
    if found is None:
        found = remember(_laid, key, SharedLease.__new__(SharedLease), LAID_MAX)
        for name in Lease.__slots__:
            object.__setattr__(found, name, getattr(lease, name))
    return found


def coarse(ms: int) -> int:
    """The begin of the grain that a time falls into; never 0, which stands for never."""
    return max(1, ms - ms % REST_GRAIN_MS)


def taken(lease: Lease) -> Lease:
    """A lease of one's own, equal to a shared one."""
    made = Lease(lease.target)
    made.units = lease.units
    made.ample = lease.ample
    made.over_ms = lease.over_ms
    made.renew_at = lease.renew_at
    made.rate_per_s = lease.rate_per_s
    made.reported_ms = lease.reported_ms
    made.own_changed_ms = lease.own_changed_ms
    made.held_elsewhere = lease.held_elsewhere
    return made


RESTING = (
    "ample", "held_elsewhere", "over_ms", "own_changed_ms", "rate_per_s", "renew_at", "reported_ms", "target", "units",
)  # fmt: skip
_resting = attrgetter(*RESTING)
_laid: dict[tuple[object, ...], Lease] = {}
NO_LEASE = laid(Lease(0))
