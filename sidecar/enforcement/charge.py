"""What one kind of request costs a tenant, worked out once and used until something of it ends or changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.catalogue.model import RouteRule
    from sidecar.enforcement.account import Account
    from sidecar.enforcement.limit_state import LimitState
    from sidecar.usage.window import Window

HOUR_MS = 3_600_000

Lineage = tuple[tuple["Account", int], ...]


class Charge:
    """What one kind of request costs a tenant (and its parent), valid from ``since_ms`` to ``until_ms`` (wall).

    ``lineage``: the tenant's ancestors, each with its edition when it was worked out.
    ``limits`` holds (account, limit, units); ``series`` holds (account, series, units) and becomes ``windows``, pairs
    of (window, units), with the first request that is allowed. ``edition`` is that of the account when it was worked
    out; ``spends`` are the limits for the fast path. ``lasts_ms``: until when all of it but seconds and minutes lasts.
    """

    __slots__ = (
        "edition",
        "features_missing",
        "lasts_ms",
        "limits",
        "lineage",
        "owners",
        "route",
        "series",
        "since_ms",
        "spends",
        "until_ms",
        "windows",
    )

    def __init__(self, route: RouteRule, lineage: Lineage, since_ms: int) -> None:
        self.route = route
        self.lineage = lineage
        self.since_ms = since_ms
        self.until_ms = self.lasts_ms = since_ms + HOUR_MS
        self.limits: list[tuple[Account, LimitState, int]] = []
        self.series: list[tuple[Account, str, int]] = []
        self.windows: list[tuple[Window, int]] | None = None
        self.owners: tuple[Account, ...] = ()
        self.features_missing: tuple[str, ...] = ()
        self.edition = 0
        self.spends: tuple[tuple[LimitState, int], ...] = ()

    def begins(self, at_s: int) -> None:
        """It begins then (unix s), or later: a wall clock that steps back before that finds it no more."""
        self.since_ms = max(self.since_ms, at_s * 1000)

    def ends(self, at_s: int) -> None:
        """It ends then (unix s), or sooner."""
        self.lasts_ms = min(self.lasts_ms, at_s * 1000)
        self.until_ms = min(self.until_ms, at_s * 1000)

    def limited(self, owner: Account, state: LimitState, units: int) -> None:
        """Units of a limit are part of it, as long as that one's period is on."""
        period = state.period
        self.begins(period.start_s)
        if period.small:
            self.until_ms = min(self.until_ms, period.end_s * 1000)
        else:
            self.ends(period.end_s)
        self.limits.append((owner, state, units))

    def complete(self, edition: int) -> None:
        """All limits are there, as of that edition of the account."""
        self.edition = edition
        self.spends = tuple((state, units) for _, state, units in self.limits)
