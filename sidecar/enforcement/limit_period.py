"""A limit in one period, without the tenant: its rule, its bounds, and what follows from both.

Guarantees: tenants of one plan share these, but for limits with a scope, whose counters are nobody else's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.memo import remember

if TYPE_CHECKING:
    from sidecar.catalogue.snapshot import LimitRule

NEAR_PERCENT = 80
FIRST_LEASE_UNITS = 20
FIRST_PART = 8
UNBOUNDED = 1 << 63
SHARED_MAX = 4_096

Key = tuple["LimitRule", int, int, bool]
_shared: dict[Key, LimitPeriod] = {}


class LimitPeriod:
    """What a limit is from ``start_s`` to ``end_s`` (unix s, wall); nothing of it changes.

    A limit without ``stop``, or in shadow, is counted and never ``leased``. ``quota``: what answers show; ``first``:
    units of a first lease; ``near_at``: the use from which answers say that it is nearly used up; ``free_until``: the
    use up to which nothing but the lease matters; ``billed_beyond``: what follows is paid for; ``carefree``: a counted
    limit that denies nothing, or not for long, so that it need not be heard of first; ``series``: that of its windows.
    """

    __slots__ = (
        "billed_beyond",
        "carefree",
        "end_s",
        "first",
        "free_until",
        "id",
        "leased",
        "near_at",
        "quota",
        "rule",
        "scoped",
        "series",
        "small",
        "start_s",
        "stop",
    )

    def __init__(self, rule: LimitRule, limit_id: str, start_s: int, end_s: int, *, leased: bool) -> None:
        included = rule.included
        self.rule = rule
        self.id = limit_id
        self.start_s = start_s
        self.end_s = end_s
        self.leased = leased
        self.stop = rule.stop
        self.small = rule.period in ("second", "minute")
        self.scoped = rule.scope != "tenant"
        self.series = f"{rule.metric}@{limit_id}" if self.scoped else rule.metric
        self.quota = included if rule.stop is None else rule.stop
        # A small cap is not handed to the first who asks: others would be denied until it comes back.
        self.first = FIRST_LEASE_UNITS if rule.stop is None else min(FIRST_LEASE_UNITS, max(1, rule.stop // FIRST_PART))
        self.near_at = UNBOUNDED if included is None else -(-included * NEAR_PERCENT // 100)
        self.free_until = UNBOUNDED if included is None or (leased and rule.beyond == "deny") else included
        self.billed_beyond = rule.beyond == "bill"
        self.carefree = self.small or rule.shadow or included is None or self.billed_beyond

    def over(self, wall_s: int) -> bool:
        """Whether it is a second or a minute that has ended: what Redis set aside in it ends, too."""
        return self.small and self.end_s <= wall_s

    def like(self, other: LimitPeriod) -> bool:
        """Whether both are the same limit in the same period, by the same rule."""
        mine, others = (self.start_s, self.end_s, self.leased), (other.start_s, other.end_s, other.leased)
        return self is other or (mine == others and self.id == other.id and self.rule == other.rule)


def limit_period(rule: LimitRule, limit_id: str, start_s: int, end_s: int, *, leased: bool) -> LimitPeriod:
    """A limit in a period; the one that other tenants refer to, where the limit has no scope."""
    if rule.scope != "tenant":
        return LimitPeriod(rule, limit_id, start_s, end_s, leased=leased)
    key = (rule, start_s, end_s, leased)
    found = _shared.get(key)
    if found is None:
        found = remember(_shared, key, LimitPeriod(rule, limit_id, start_s, end_s, leased=leased), SHARED_MAX)
    return found
