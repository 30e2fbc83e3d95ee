"""Runs comparisons with Stripe: on schedule, one at a time in the whole installation, or when somebody asks.

Guarantees: what the last comparison found is in Postgres, where every process and the command line see the same. On
            schedule only what is provably safe is repaired.
Gives up:   a comparison that Stripe or Postgres breaks off is begun anew, from the start, after ``RETRY_S``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from msgspec import Struct

from sidecar.billing.reconciliation import drift
from sidecar.billing.reconciliation.counters import REPAIRS, DriftCounters
from sidecar.billing.reconciliation.drift import Line
from sidecar.billing.reconciliation.mending import Mender, Repair
from sidecar.billing.reconciliation.reconcile import PAUSE_S, Comparison, Unread, keep
from sidecar.billing.reconciliation.shown import Shown
from sidecar.billing.stripe_api import StripeApi
from sidecar.clock import Clock
from sidecar.errors import Conflict, SidecarError
from sidecar.ledger.connection import Ledger
from sidecar.logs import Transition, fields

ACTOR = "reconciliation"
CLAIM_S = 600  # longer than one page of customers takes
POLL_S = 30
RETRY_S = 900
TOLD_MAX = 20  # lines of one comparison in the log; all are in Postgres

log = logging.getLogger(__name__)


class Last(Struct, frozen=True):
    """The last comparison of the whole installation; times of 0 are none."""

    began_s: int
    ended_s: int
    since_s: int
    failed_s: int
    lanes: int
    unread: int
    repaired: int
    problem: str
    now_s: int


class Report(Struct, frozen=True):
    """What one comparison came to."""

    lanes: int
    lines: tuple[Line, ...]
    unread: tuple[Unread, ...]
    repairs: tuple[Repair, ...]

    @property
    def bad(self) -> bool:
        """Whether somebody has to look."""
        return bool(self.unread) or any(line.matters for line in self.lines)


class Reconciler:
    """Compares one installation with one account."""

    def __init__(
        self,
        ledger: Ledger,
        api: StripeApi,
        clock: Clock,
        counters: DriftCounters | None = None,
        *,
        shown: Shown | None = None,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.counters = counters or DriftCounters()
        self._ledger = ledger
        self._api = api
        self._clock = clock
        self._shown = shown or Shown(api)
        self._pause_s = pause_s
        self._claim = secrets.token_hex(8)
        self._standing = Transition(log, "what a comparison with Stripe needs")

    async def run(
        self,
        *,
        tenant: str = "",
        since_s: int | None = None,
        repair: bool = False,
        actor: str = ACTOR,
        asked: bool = False,
    ) -> Report:
        """Compare, and repair when told to; Conflict while another comparison is under way."""
        await self._take()
        mender = Mender(self._ledger, self._api, self._shown, actor=actor, asked=asked) if repair else None
        comparison = Comparison(self._ledger, self._shown, mender=mender, pause_s=self._pause_s)
        try:
            return await self._run(comparison, tenant, since_s)
        except SidecarError as error:
            async with self._ledger.transaction() as tx:
                await tx.rows("fail_reconciliation", str(error)[:1000])
            raise
        finally:
            async with self._ledger.transaction() as tx:
                await tx.rows("free_reconciliation", self._claim)

    async def _run(self, comparison: Comparison, tenant: str, since_s: int | None) -> Report:
        began_s = (await self.last()).now_s
        first_s = began_s
        lanes = 0
        lines: list[Line] = []
        unread: list[Unread] = []
        repairs: list[Repair] = []
        async for found in comparison.tenants(tenant, since_s):
            lanes += len(found.metrics)
            first_s = min(first_s, found.since_s)
            lines += found.lines
            unread += found.unread
            repairs += found.repairs
            for repair in found.repairs:
                self.counters.repaired[repair.kind] += 1
            async with self._ledger.transaction() as tx:
                await keep(tx, found)
            await self._take()
        if not tenant and since_s is None:
            async with self._ledger.transaction() as tx:
                await tx.rows("end_reconciliation", began_s, first_s, lanes, len(unread), len(repairs))
        self._tell(lanes, lines, unread, repairs)
        return Report(lanes, tuple(lines), tuple(unread), tuple(repairs))

    async def last(self) -> Last:
        """What the last comparison of the whole installation came to."""
        async with self._ledger.transaction() as tx:
            row = await tx.row("reconciliation")
        return Last(*row) if row is not None else Last(0, 0, 0, 0, 0, 0, 0, "", self._clock.wall_s())

    async def loop(self, interval_s: int) -> None:
        """Compare whenever it is time, until cancelled."""
        while True:
            try:
                if await self.due(interval_s):
                    await self.run(repair=True)
                await self.refresh()
                self._standing.good()
            except Conflict:
                pass  # another process compares
            except SidecarError as error:
                self._standing.bad(cause=str(error))
            except Exception:
                log.exception("ledger and Stripe could not be compared")
            await asyncio.sleep(POLL_S)

    async def due(self, interval_s: int) -> bool:
        """Whether it is time for a comparison of the whole installation."""
        last = await self.last()
        return last.now_s >= last.ended_s + interval_s and last.now_s >= last.failed_s + min(RETRY_S, interval_s)

    async def refresh(self) -> None:
        """Set the gauges from what the last comparison kept, whichever process made it."""
        last = await self.last()
        async with self._ledger.transaction() as tx:
            rows = await tx.rows("drift_by_kind")
        found = {kind: (int(units), int(tenants)) for kind, units, tenants in rows}
        counters = self.counters
        for kind in drift.KINDS:
            counters.units[kind], counters.tenants[kind] = found.get(kind, (0, 0))
        counters.unread = last.unread
        counters.compared_ms = self._clock.monotonic_ms() - (last.now_s - last.ended_s) * 1000 if last.ended_s else None

    async def _take(self) -> None:
        async with self._ledger.transaction() as tx:
            if not await tx.value("take_reconciliation", self._claim, CLAIM_S):
                raise Conflict("ledger and Stripe are being compared right now; wait until that is done")

    def _tell(self, lanes: int, lines: list[Line], unread: list[Unread], repairs: list[Repair]) -> None:
        days = [line for line in lines if line.span == "day"]
        bad = [line for line in days if line.matters]
        log.log(
            logging.ERROR if bad or unread else logging.INFO,
            "ledger and Stripe compared",
            extra=fields(
                lanes=lanes,
                different=len(days),
                unexplained=len(bad),
                unread=len(unread),
                repaired={kind: count for kind in REPAIRS if (count := sum(r.kind == kind for r in repairs))},
            ),
        )
        for line in bad[:TOLD_MAX]:
            log.error(
                "ledger and Stripe differ",
                extra=fields(tenant=line.tenant, metric=line.metric, day_s=line.from_s, explained=line.explained),
            )
