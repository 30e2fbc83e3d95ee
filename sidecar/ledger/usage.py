"""What was used, read back: totals by period, history, and the parts that `sidecar verify` compares."""

from __future__ import annotations

import zlib
from typing import Literal

from msgspec import Struct

from sidecar.ledger.shard import CounterRow
from sidecar.ledger.transaction import Transaction


class PeriodTotal(Struct, frozen=True):
    """A tenant's total of a metric in one billing period."""

    metric: str
    period_s: int
    amount: int


class HistoryTotal(Struct, frozen=True):
    """A tenant's total of a metric in one hour, day or month, which starts at ``at_s``."""

    metric: str
    at_s: int
    amount: int


class Drift(Struct, frozen=True):
    """A window whose total is not the sum of its counters."""

    tenant: str
    metric: str
    scope: str
    period_s: int
    hour: int
    total: int
    counted: int


async def by_period(tx: Transaction, tenant: str, since_s: int = 0) -> list[PeriodTotal]:
    """Per metric and billing period that starts at ``since_s`` or later, oldest first."""
    return [PeriodTotal(*row) for row in await tx.rows("usage_by_period", tenant, since_s)]


async def history(
    tx: Transaction, tenant: str, step: Literal["hour", "day", "month"], from_s: int, before_s: int, metric: str = ""
) -> list[HistoryTotal]:
    """Totals by hour, day or calendar month (UTC) of the hours that start in the span, only those with usage."""
    return [HistoryTotal(*row) for row in await tx.rows("usage_history", tenant, step, from_s, before_s, metric)]


async def counters(tx: Transaction, tenant: str, since_hour: int) -> list[CounterRow]:
    """Every writer's part of a tenant's windows of ``since_hour`` and later."""
    shard = zlib.crc32(tenant.encode()) % tx.shards
    return [CounterRow(*row) for row in await tx.rows("tenant_counters", shard, tenant, since_hour)]


async def drift(tx: Transaction, since_hour: int) -> list[Drift]:
    """Windows of ``since_hour`` and later whose total differs from their counters; empty unless somebody meddled."""
    return [Drift(*row) for row in await tx.rows("drift", since_hour)]
