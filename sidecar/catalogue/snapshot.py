"""A tenant's plan after overrides, as every process sees it: the unit that is published and swapped.

The msgpack form is stored in Redis at ``sc:{sNNN}:tenant:<tenant>``; arrays, because a writer reads many.
"""

from __future__ import annotations

from msgspec import Struct

from sidecar.catalogue.model import Beyond, Outage, Period


class LimitRule(Struct, frozen=True, array_like=True):
    """One limit as it is enforced. Amounts in base units, times in seconds.

    ``stop`` is the amount at which requests are denied exactly (hard cap, ceiling or buffer), None when nothing
    stops by amount; a limit with a stop is leased. ``included`` None is unlimited.
    """

    name: str
    metric: str
    period: Period
    scope: str  # "tenant", "route", "key", "user"
    routes: tuple[str, ...]
    included: int | None
    stop: int | None
    beyond: Beyond
    grace_s: int
    on_outage: Outage
    outage_units: int
    shadow: bool


class Snapshot(Struct, frozen=True, array_like=True):
    """What a sidecar knows of a tenant. ``rev`` only grows. ``status_until_s`` ends a trial or grace (0: none).

    Billing periods start at ``anchor_s`` (unix seconds) plus whole multiples of ``interval_months``.
    """

    tenant: str
    rev: int
    plan: str
    status: str  # active trialing past_due unpaid cancelled paused suspended
    status_until_s: int
    parent: str
    anchor_s: int
    interval_months: int
    features: dict[str, str | int | bool]
    forward: tuple[str, ...]
    shadow: bool
    limits: tuple[LimitRule, ...]
