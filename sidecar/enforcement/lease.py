"""What a writer has of one limit in one period while it spends from it: the lease, and what is being asked for.

A worker has very many limits and few that are in use, so a limit without anything of this kind has NO_LEASE instead.
Units are base units; times are milliseconds, monotonic.
"""

from __future__ import annotations

from typing import NoReturn


class Lease:
    """What is in hand of a limit, asked for, or being decided without Redis.

    ``units`` are left but for the limit's ``pending``. ``need``, ``least`` and ``waiting`` are the most and the least
    that one waiting request wants, and what all want. ``ample``: Redis has many more leases of this size to give.
    ``refused``: an outage policy denied something since Redis last answered. ``watched``: the limit's total matters
    although this writer does not spend from it.
    """

    __slots__ = (
        "ample",
        "contended_until_ms",
        "held_elsewhere",
        "in_flight",
        "least",
        "need",
        "outage_used",
        "own_changed_ms",
        "rate_per_s",
        "refused",
        "renew_at",
        "renewing",
        "reported_ms",
        "target",
        "units",
        "waiting",
        "watched",
    )

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
        self.refused = False
        self.watched = False


class NoLease(Lease):
    """What limits without a lease have in its place, all the same one; nobody may change it."""

    __slots__ = ()

    def __setattr__(self, name: str, _value: object) -> NoReturn:
        message = f"{name} of no lease cannot be set"
        raise AttributeError(message)


def _no_lease() -> Lease:
    made = NoLease.__new__(NoLease)
    for name, value in ((name, getattr(Lease(0), name)) for name in Lease.__slots__):
        object.__setattr__(made, name, value)
    return made


NO_LEASE = _no_lease()
