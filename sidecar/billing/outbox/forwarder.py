"""The forwarder: carries deltas from the outbox to Stripe.

A round of it: claim lanes and commit that their rows are about to be sent -> call, each at its slot of the common
pace -> commit what came of it. Rows in doubt and lanes that are to be compared with Stripe are work of the same kind.

Guarantees: killed between any two steps it loses nothing and sends nothing twice: a claim ends by itself, and whoever
            takes the lane then finds the row as about to be sent, and sends it under the same identifier. Several
            forwarders share the lanes and the pace. While Stripe is away one call at a time finds out when it is back.
Gives up:   order between lanes but for their deadlines; exactness of the pace while a forwarder's machine stands still.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from msgspec import Struct

from sidecar.billing.outbox import claim, fate, lanes, outbox, settlement, verification
from sidecar.billing.outbox.bulk import MeterEventStream
from sidecar.billing.outbox.claim import Batch, ForwarderTerms
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.fate import Fate
from sidecar.billing.outbox.folding import fold
from sidecar.billing.outbox.lanes import CLAIM_S, Release, Work
from sidecar.billing.outbox.meter_events import MeterEvents
from sidecar.billing.outbox.outbox import Outbox
from sidecar.billing.outbox.row import Row
from sidecar.billing.outbox.schedule import Step
from sidecar.billing.outbox.settlement import Summaries
from sidecar.billing.stripe_api import StripeApi
from sidecar.clock import Clock
from sidecar.errors import LedgerUnavailable, SidecarError, StripeUnavailable
from sidecar.ledger.connection import Ledger
from sidecar.ledger.distrust import distrust
from sidecar.ledger.epochs import UNSEEN
from sidecar.ledger.transaction import Transaction
from sidecar.logs import Transition, fields

log = logging.getLogger(__name__)

DECIDE_LOOK_S = 1.0
IDLE_S = 0.5
RETRY_S = 0.2
GAUGES_S = 10.0
FOLD_S = 60.0
IN_FLIGHT_MAX = 192  # lanes; a batch is claimed when a quarter of them is free
BULK_IN_FLIGHT_MAX = 1_000
GATHER_S = 0.01
PROBE_FIRST_S = 1.0
PROBE_MAX_S = 30.0
SLOW_SHARE = 5  # everybody slows down when more than this part of the answers asks for it
CALL_MAX_S = 40  # a call is given up after that; nothing is called with less than that left of a claim, or of a period
STOP_S = 10.0
FLUSH_S = 20.0

Vouch = Callable[[dict[int, int]], bool]


class Sender(Protocol):
    """How rows of different lanes reach Stripe, at most ``per_call`` in one call."""

    per_call: int

    async def send(self, lanes: Sequence[tuple[Work, Row]]) -> list[Fate]: ...


class Done(Struct):
    """What came of part of a batch."""

    fates: list[Fate]
    releases: list[Release]


class Forwarder:
    """Run by the backoffice. ``vouch`` says whether the ledger is as new as Redis knows it to be: Flusher.vouches."""

    def __init__(
        self,
        ledger: Ledger,
        api: StripeApi,
        terms: ForwarderTerms,
        counters: BillingCounters,
        clock: Clock,
        *,
        vouch: Vouch = lambda _: True,
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._terms = terms
        self.counters = counters
        self._clock = clock
        self._vouch = vouch
        self._step = step
        self.outbox = Outbox(ledger, counters, interval_s=terms.interval_s, close_delay_s=terms.close_delay_s)
        self._sender: Sender = MeterEventStream(api) if terms.bulk else MeterEvents(api)
        self._in_flight_max = BULK_IN_FLIGHT_MAX if terms.bulk else IN_FLIGHT_MAX
        self._summaries = Summaries(api)
        self._state = Transition(log, "Stripe")
        self._probe_s = 0.0
        self._stopping = False
        self._stopped = asyncio.Event()
        self._stopped.set()
        self._causes: dict[str, str] = {}

    @property
    def cause(self) -> str:
        """What keeps usage from Stripe right now; empty when nothing does."""
        return next(iter(self._causes.values()), "")

    @property
    def away(self) -> bool:
        """Whether Stripe did not answer lately, or refuses our key."""
        return self._probe_s > 0

    async def run(self) -> None:
        """Decide and send until stopped."""
        self._stopped.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                deciding = tasks.create_task(self._every(DECIDE_LOOK_S, self.decide))
                gauging = tasks.create_task(self._every(GAUGES_S, self._gauge))
                folding = tasks.create_task(self._every(FOLD_S, self._fold))
                await self._every(IDLE_S, self.pump)
                deciding.cancel()
                gauging.cancel()
                folding.cancel()
        finally:
            self._stopped.set()

    async def stop(self) -> None:
        """Claim nothing more, and wait for calls under way, within bounds."""
        self._stopping = True
        try:
            await asyncio.wait_for(self._stopped.wait(), STOP_S)
        except TimeoutError:
            log.warning("stopped while calls to Stripe were under way; they are taken up again when their claim ends")

    async def flush(self, timeout_s: float = FLUSH_S) -> None:
        """Decide what the ledger has now, and return when every delta was tried, Stripe is away, or the time is up."""
        until_ms = self._clock.monotonic_ms() + int(timeout_s * 1000)
        while not self.away and self._clock.monotonic_ms() < until_ms:
            decided = await self._decide_all(until_ms)
            await self.pump(until_ms=until_ms)
            async with self._ledger.transaction() as tx:
                if not decided and not await tx.value("untried_rows"):
                    return
            await asyncio.sleep(RETRY_S)

    async def flush_tenant(self, tenant: str, timeout_s: float = FLUSH_S) -> int:
        """Decide and send everything of one tenant now; returns how many deltas Stripe does not have after that.

        For what comes next to close the books of a customer, such as a cancellation. Usage that may not be decided yet
        counts as a delta for each window; a ledger that nobody vouches for may lack usage, and counts as one at least.
        """
        until_ms = self._clock.monotonic_ms() + int(timeout_s * 1000)
        async with self._ledger.transaction() as tx:
            shard = int(await tx.value("shard_of", tenant))
        while True:
            vouched = await self._vouched()
            decided = await self._decide(shard, tenant) if vouched else 0
            await self.pump(tenant, until_ms)
            async with self._ledger.transaction() as tx:
                rows, stuck = (await tx.rows("open_rows_of", tenant))[0]
            held, soon = await self.outbox.undecided(tenant)
            if vouched and not decided and not soon and rows == stuck:
                return int(rows + held)
            if self.away or self._clock.monotonic_ms() >= until_ms:
                if not vouched:
                    log.warning("nothing vouches for a tenant's usage; it was not sent", extra=fields(tenant=tenant))
                return max(int(rows + held), int(not vouched))
            await asyncio.sleep(RETRY_S)

    async def decide(self) -> None:
        """Decide the deltas of shards whose turn it is."""
        for shard in await self.outbox.due():
            if await self._vouched():
                await self.outbox.decide(shard)
                self._step("decided")

    async def _decide_all(self, until_ms: int) -> int:
        while not await self._vouched():
            if self._clock.monotonic_ms() >= until_ms:
                return 0
            await asyncio.sleep(RETRY_S)
        return sum([await self._decide(shard) for shard in await self.outbox.due(now=True)])

    async def _decide(self, shard: int, tenant: str = "") -> int:
        """Decide a shard as soon as nobody else has it."""
        while (decided := await self.outbox.decide(shard, tenant)) is None:  # noqa: ASYNC110 - the same
            await asyncio.sleep(RETRY_S)
        return decided

    async def _every(self, pause_s: float, work: Callable[[], Awaitable[None]]) -> None:
        name = work.__name__
        while not self._stopping:
            try:
                await work()
                self._causes.pop(name, None)
            except SidecarError as error:
                self._causes[name] = str(error)
            except Exception as error:  # whatever it is, the next round may work, and nothing else carries usage
                if str(error) != self._causes.get(name):
                    log.exception("forwarding failed unexpectedly")
                self._causes[name] = str(error)
            await asyncio.sleep(pause_s)

    async def pump(self, tenant: str = "", until_ms: int = 2**63) -> None:
        """Claim, send and record until there is nothing left to claim, of one tenant when given.

        Nothing is claimed after ``until_ms`` (monotonic), but what was is brought to its end.
        """
        under_way: set[asyncio.Task[Done]] = set()
        try:
            while True:
                ended = self._stopping or self._clock.monotonic_ms() >= until_ms
                batch = None if ended else await self._claim_some(under_way, tenant)
                if batch is not None:
                    under_way |= self._start(batch)
                if not under_way:
                    if batch is None:
                        return
                    continue
                done, under_way = await asyncio.wait(under_way, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    await asyncio.sleep(GATHER_S)
                    more = {task for task in under_way if task.done()}
                    under_way -= more
                    await self._record([task.result() for task in done | more])
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _claim_some(self, under_way: set[asyncio.Task[Done]], tenant: str) -> Batch | None:
        room = self._in_flight_max - len(under_way) * self._sender.per_call
        if under_way and (self.away or room < self._in_flight_max // 4):
            return None
        try:
            return await self._claim(1 if self.away else room, tenant)
        except LedgerUnavailable:
            if under_way:
                return None  # what was sent is to be recorded before anything else
            raise

    async def _claim(self, most: int, tenant: str) -> Batch | None:
        """One transaction: claim lanes, see what each has to do, and commit which rows are about to be sent."""
        if self.away:
            await asyncio.sleep(self._probe_s * (0.5 + random.random() / 2))
        token = secrets.token_hex(8)
        began_ms = self._clock.monotonic_ms()
        self._step("claiming")
        async with self._ledger.transaction() as tx:
            if not await self._vouched(tx):
                return None
            batch = await claim.claim(tx, token, most, self._terms, tenant=tenant, per_call=self._sender.per_call)
            self._step("claimed, not committed")
        self._step("claimed")
        if batch is not None:
            batch.began_ms, batch.until_ms = began_ms, began_ms + (CLAIM_S - CALL_MAX_S) * 1000
            self.counters.pace_permille = batch.pace.permille
        return batch

    async def _vouched(self, tx: Transaction | None = None) -> bool:
        if tx is None:
            async with self._ledger.transaction() as own:
                return await self._vouched(own)
        states = await tx.rows("shard_states")
        return self._vouch({int(shard): UNSEEN if doubted else int(epoch) for shard, epoch, _, doubted, _ in states})

    def _start(self, batch: Batch) -> set[asyncio.Task[Done]]:
        size = self._sender.per_call
        chunks = [batch.sends[first : first + size] for first in range(0, len(batch.sends), size)]
        tasks = {
            asyncio.create_task(self._send(batch, chunk, (batch.pace.first_us + index * batch.pace.step_us) / 1e6))
            for index, chunk in enumerate(chunks)
        }
        return tasks | {asyncio.create_task(self._other(work, step)) for work, step in batch.others}

    async def _send(self, batch: Batch, chunk: list[tuple[Work, Row]], wait_s: float) -> Done:
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        began_ms = self._clock.monotonic_ms()
        latest_s = CALL_MAX_S + (began_ms - batch.began_ms) // 1000
        late: list[tuple[Work, Row]] = []
        timely: list[tuple[Work, Row]] = []
        for work, row in chunk:
            in_time = began_ms < batch.until_ms and work.now_s + latest_s < row.deadline_s
            (timely if in_time else late).append((work, row))
        fates = [fate.unsent(row, "its turn came too late") for _, row in late]
        if timely:
            self._step("calling")
            fates += await self._call(timely)
            self.counters.call_us.observe((self._clock.monotonic_ms() - began_ms) * 1000)
            self._step("called")
        releases = []
        for (work, _), found in zip(late + timely, fates, strict=True):
            good = found.state in ("delivered", "parked", "in_doubt")
            pause_ms = 0 if good else fate.pause_ms(found.outcome, work.failures, random.random())
            releases.append(Release(work.claim, work.tenant, work.metric, 0 if good else work.failures + 1, pause_ms))
        return Done(fates, releases)

    async def _call(self, chunk: list[tuple[Work, Row]]) -> list[Fate]:
        """Send rows; what is not answered in time may have arrived, and is sent again under the same identifier."""
        try:
            async with asyncio.timeout(CALL_MAX_S):
                return await self._sender.send(chunk)
        except TimeoutError:
            error = StripeUnavailable(f"Stripe did not answer within {CALL_MAX_S} s")
            return [fate.failed(row, error) for _, row in chunk]

    async def _other(self, work: Work, step: Step) -> Done:
        """Settle or verify a lane; whatever goes wrong is tried again later."""
        pause_ms = 0
        try:
            if step.kind == "verify":
                async with self._ledger.transaction() as tx:
                    scale = (await self.outbox.scales.read(tx)).get(work.metric, 0)
                adopted = await verification.verify(self._ledger, self._summaries, work, scale)
                self.counters.settled["adopted"] += adopted or 0
                pause_ms = outbox.SETTLE_AFTER_S * 1000 if adopted is None else 0
            else:
                for verdict in await settlement.settle(self._ledger, self._summaries, work):
                    self.counters.settled[verdict] += 1
            self._step("settled")
        except SidecarError as error:
            log.warning(
                "summaries could not be compared",
                extra=fields(tenant=work.tenant, metric=work.metric, cause=str(error)),
            )
            pause_ms = fate.pause_ms("unknown", work.failures, random.random())
        failures = work.failures + 1 if pause_ms else 0
        return Done([], [Release(work.claim, work.tenant, work.metric, failures, pause_ms)])

    async def _record(self, done: Sequence[Done]) -> None:
        """Commit what came of calls; tried again until it is, since Stripe was told already."""
        fates = [found for part in done for found in part.fates]
        releases = [found for part in done for found in part.releases]
        self._step("recording")
        while True:
            try:
                async with self._ledger.transaction() as tx:
                    await lanes.record(tx, fates, releases)
                    if sum(found.slow for found in fates) * SLOW_SHARE > len(fates):
                        await tx.rows("slow_pace")
                    for tenant in {found.row.window.tenant for found in fates if found.surprising}:
                        await distrust(tx, tenant=tenant)
                        log.error(
                            "Stripe knows an event this ledger never sent; its totals are compared first",
                            extra=fields(tenant=tenant),
                        )
                    self._step("recorded, not committed")
                break
            except LedgerUnavailable as error:
                self._causes["pump"] = str(error)
                await asyncio.sleep(RETRY_S)
        self._step("recorded")
        self._note(fates)

    def _note(self, fates: Sequence[Fate]) -> None:
        """Count, and see whether Stripe is there."""
        for found in fates:
            self.counters.events[found.outcome] += 1
        away = [f for f in fates if f.outcome == "unknown" or f.locked_out]
        if not fates:
            return
        if len(away) < len(fates):
            self._probe_s = 0.0
            self._causes.pop("stripe", None)
            self._state.good()
        elif len(fates) >= self._in_flight_max // 16 or self.away or any(f.locked_out for f in fates):
            self._probe_s = min(PROBE_MAX_S, self._probe_s * 2 or PROBE_FIRST_S)
            self._causes["stripe"] = away[0].reason
            self._state.bad(cause=away[0].reason)

    async def _fold(self) -> None:
        await fold(self._ledger)

    async def _gauge(self) -> None:
        await self.outbox.left_behind()
        async with self._ledger.transaction() as tx:
            row = await tx.row("outbox_gauges")
        if row is not None:
            waiting, in_doubt, parked, lag_s = row
            self.counters.rows = {"waiting": waiting, "in_doubt": in_doubt, "parked": parked}
            self.counters.lag_s = int(lag_s)
