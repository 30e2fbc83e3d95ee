"""What a tenant has used: every limit in its current period, and the ledger's totals of the billing period.

Guarantees: amounts are exact decimals, computed from the ledger; the same numbers for the command line and the API.
Gives up:   limits of seconds and minutes, whose use never reaches the ledger: they are listed with nothing used; the
            minute in which a grace ends, which only Redis knows: it says "grace" for up to an hour longer.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec
from msgspec import Struct

from sidecar.catalogue import period
from sidecar.catalogue.amount import to_decimal
from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.ledger import projection, tenants, usage
from sidecar.ledger.transaction import Transaction

NEAR_PERCENT = 80
ENCODER = msgspec.json.Encoder(decimal_format="number")


class LimitUsage(Struct, frozen=True, kw_only=True):
    """One limit now; ``included`` is null when it is unlimited, ``cap`` "hard" or "soft"."""

    limit: str
    metric: str
    used: Decimal
    included: Decimal | None
    cap: str
    period_start: int
    period_end: int
    status: str


class UsageReport(Struct, frozen=True, kw_only=True):
    """A tenant's limits, and what the ledger has of the current billing period."""

    tenant: str
    plan: str
    limits: list[LimitUsage]
    ledger: dict[str, Decimal]


async def usage_report(tx: Transaction, catalogue: Catalogue, tenant: str, now_s: int) -> UsageReport:
    """Read the ledger; NotFound when there is no such tenant."""
    row = await tenants.show(tx, tenant)
    snapshot = projection.snapshot(catalogue, row)
    start_s, _ = period.bounds("billing", now_s, snapshot.anchor_s, snapshot.interval_months)
    totals = {total.metric: total.amount for total in await usage.by_period(tx, tenant, start_s)}
    scales = {name: metric.scale for name, metric in catalogue.metrics.items()}
    limits = [await _limit(tx, snapshot, rule, now_s, scales[rule.metric]) for rule in snapshot.limits]
    return UsageReport(
        tenant=tenant,
        plan=snapshot.plan,
        limits=limits,
        ledger={name: to_decimal(amount, scales.get(name, 0)) for name, amount in sorted(totals.items())},
    )


async def _limit(tx: Transaction, snapshot: Snapshot, rule: LimitRule, now_s: int, scale: int) -> LimitUsage:
    start_s, end_s = period.bounds(rule.period, now_s, snapshot.anchor_s, snapshot.interval_months)
    used = await _used(tx, snapshot, rule, start_s, end_s)

    status = standing(rule, used, shadow=snapshot.shadow)
    if status == "grace" and await _grace_over(tx, snapshot.tenant, rule, (start_s, end_s), now_s):
        status = "denied"

    def decimal(units: int | None) -> Decimal | None:
        return None if units is None else to_decimal(units, scale)

    return LimitUsage(
        limit=rule.name,
        metric=rule.metric,
        used=to_decimal(used, scale),
        included=decimal(rule.included),
        cap="hard" if rule.beyond == "deny" else "soft",
        period_start=start_s,
        period_end=end_s,
        status=status,
    )


async def _grace_over(tx: Transaction, tenant: str, rule: LimitRule, span: tuple[int, int], now_s: int) -> bool:
    """Whether the grace is surely over; it began somewhere in the hour that brought the first excess."""
    start_s, end_s = span
    used = 0
    for row in sorted(await usage.counters(tx, tenant, start_s // 3600), key=lambda row: row.hour):
        if row.metric != rule.metric or row.hour * 3600 >= end_s or not _of(rule, row.scope):
            continue
        if rule.period == "billing" and row.period_s != start_s:
            continue
        used += row.amount
        if rule.included is not None and used > rule.included:
            return now_s >= (row.hour + 1) * 3600 + rule.grace_s
    return False


async def _used(tx: Transaction, snapshot: Snapshot, rule: LimitRule, start_s: int, end_s: int) -> int:
    """The tenant's total inside a period; of a scoped limit, the total of all its scopes."""
    if rule.period in ("second", "minute"):
        return 0
    if rule.period == "billing" and rule.scope == "tenant":
        totals = await usage.by_period(tx, snapshot.tenant, start_s)
        return sum(total.amount for total in totals if total.metric == rule.metric and total.period_s == start_s)
    rows = await usage.counters(tx, snapshot.tenant, start_s // 3600)
    return sum(
        row.amount for row in rows if row.metric == rule.metric and row.hour * 3600 < end_s and _of(rule, row.scope)
    )


def _of(rule: LimitRule, scope: str) -> bool:
    return scope == "" if rule.scope == "tenant" else scope.startswith(f"{rule.name}:")


def standing(rule: LimitRule, used: int, *, shadow: bool = False) -> str:
    """How a limit stands, in the words of x-quota-status."""
    if rule.included is None:
        return "ok"
    if used >= rule.included and (shadow or rule.shadow):
        return "shadow"
    if rule.stop is not None and used >= rule.stop:
        return "denied"
    if used > rule.included:
        return "grace" if rule.beyond == "grace" else "over" if rule.beyond == "bill" else "denied"
    return "near" if used * 100 >= rule.included * NEAR_PERCENT else "ok"
