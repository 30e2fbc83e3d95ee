"""What bills: forwarders with their outbox, beside flushers' passes, over a Postgres and a Stripe in memory.

What is counted comes from ``Counts``, which stands for Redis and the journals: they keep what the ledger lacks, and
know how far it was. A flusher's pass over it is written out here in a few lines (the pass itself runs in the other
world); whether the ledger may be sent from is judged by the flusher's own Epochs.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock
from zlib import crc32

from sidecar.billing.outbox import rejection
from sidecar.billing.outbox.claim import ForwarderTerms
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.forwarder import Forwarder
from sidecar.catalogue.period import bounds
from sidecar.errors import Conflict, LedgerUnavailable, SidecarError
from sidecar.ledger.distrust import distrust
from sidecar.ledger.epochs import Epochs
from sidecar.ledger.shard import CounterRow, ShardState
from tests.simulation.billing.deciding import Deciding
from tests.simulation.billing.sending import Sending
from tests.simulation.billing.stripe import StripeServer
from tests.simulation.billing.tables import Customer, Meters, Outbox, OutboxRow, OutboxServer
from tests.simulation.clock import MachineClock
from tests.simulation.network import below
from tests.simulation.postgres import MemoryLedger
from tests.simulation.scheduler import Process, Step, VirtualLoop, virtual
from tests.simulation.tables import CounterKey

EPOCH_S = 1_772_366_400  # 2026-03-01 12:00:00 UTC
SHARDS = 2
TENANTS = ("a", "b", "d")  # of both shards
SCALES = {"calls": 0, "tokens": 3}
HOUR_S, DAY_S = 3_600, 86_400
CLOSE_DELAY_S = HOUR_S
GUARD_S = 60
SLACK_S = 20  # between the clocks of Stripe and of the ledger
TAKES_TIME = 0.3
CUT = 0.01  # how many answers of Postgres are lost with their connection
CALL_MS_MAX = 20_000  # a call that took longer may come after a period was closed


class Counts:
    """What was counted, by writer and window, and what Redis knows of the ledger: the windows it lacks, its epochs."""

    def __init__(self) -> None:
        self.amounts: dict[CounterKey, int] = {}
        self.dirty: dict[CounterKey, int] = {}
        self.epochs = [0] * SHARDS
        self._version = 0

    def add(self, key: CounterKey, units: int) -> None:
        self.amounts[key] = self.amounts.get(key, 0) + units
        self.mark(key)

    def mark(self, key: CounterKey) -> None:
        self._version += 1
        self.dirty[key] = self._version

    def lacking(self, shard: int) -> dict[CounterKey, int]:
        return {key: version for key, version in self.dirty.items() if crc32(key[0].encode()) % SHARDS == shard}

    def mark_all(self, shard: int) -> None:
        for key in self.amounts:
            if crc32(key[0].encode()) % SHARDS == shard:
                self.mark(key)

    def settle(self, shard: int, epoch: int, seen: dict[CounterKey, int]) -> None:
        self.epochs[shard] = max(self.epochs[shard], epoch)
        for key, version in seen.items():
            if self.dirty.get(key) == version:
                del self.dirty[key]

    def total(self, tenant: str, metric: str) -> Decimal:
        units = sum(amount for key, amount in self.amounts.items() if key[:2] == (tenant, metric))
        return Decimal(units).scaleb(-SCALES[metric])


class OutboxTransaction(Deciding, Sending):
    """An open transaction with all the queries of the outbox."""

    __slots__ = ()


class OutboxLedger(MemoryLedger):
    """What a process holds of a Postgres with an outbox."""

    def __init__(self, world: Billing, process: Process) -> None:
        super().__init__(world.postgres, process, partial(world.answer, process))
        self._world = world

    def _open(self, shard: int) -> OutboxTransaction:
        return OutboxTransaction(self._world.postgres, shard, self._process, self._answer, self._world.loop.pause_us)


class Backoffice:
    """One process: a flusher's passes and a forwarder."""

    def __init__(self, world: Billing, name: str) -> None:
        self.process = Process(name)
        self._world = world
        self._ledger: Any = OutboxLedger(world, self.process)
        self._clock = MachineClock(world.loop, world.start_ms)
        self._epochs = Epochs(SHARDS, self._clock)
        self.forwarder: Forwarder = self.process.run(self._build)
        self.process.spawn(world.loop, self.forwarder.run())
        self.process.spawn(world.loop, self._pass_all())

    def _build(self) -> Forwarder:
        world = self._world
        terms = ForwarderTerms(interval_s=2, close_delay_s=CLOSE_DELAY_S, calls_per_s=950, bulk=world.bulk)
        return Forwarder(
            self._ledger,
            world.stripe.api(self.process),
            terms,
            BillingCounters(),
            self._clock,
            vouch=self._epochs.vouches,
        )

    async def _pass_all(self) -> None:
        while True:
            try:
                async with self._ledger.transaction() as tx:
                    states = {row[0]: ShardState(*row[1:4]) for row in await tx.rows("shard_states")}
                self._epochs.compare(states)
                for shard in range(SHARDS):
                    await self._pass(shard)
            except SidecarError:
                pass
            await asyncio.sleep(1)

    async def _pass(self, shard: int) -> None:
        counts = self._world.counts
        self._epochs.hear(shard, counts.epochs[shard])
        async with self._ledger.shard(shard) as tx:
            if tx is None:
                return
            state, known = await tx.state(), counts.epochs[shard]
            epoch = state.epoch
            if known > epoch or state.doubted:
                if await tx.doubt():
                    self._epochs.doubt()
                counts.mark_all(shard)
                await distrust(tx, shard=shard)
            seen = counts.lacking(shard)
            if seen or known > epoch:
                await tx.merge([CounterRow(*key, counts.amounts[key]) for key in seen], "free")
                epoch = await tx.raise_epoch(known)
        self._epochs.seen[shard] = epoch
        counts.settle(shard, epoch, seen)


class _Log:
    """The forwarder goes on after an exception that nobody expects; here it is a finding."""

    def __init__(self, unexpected: Callable[[str], None]) -> None:
        self._unexpected = unexpected

    def exception(self, _message: str, **_about: Any) -> None:
        self._unexpected(traceback.format_exc())

    def warning(self, *_about: Any, **_fields: Any) -> None:
        return

    info = error = log = warning


class Billing:
    """Everything of one run. ``history`` is what a person reads of it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(f"{seed} billing")
        self.loop = VirtualLoop()  # type: ignore[abstract]
        self.history: list[str] = []
        self.violations: list[str] = []
        self.faults: dict[str, int] = defaultdict(int)
        self.start_ms = (EPOCH_S + self.random.randrange(HOUR_S)) * 1000
        self.bulk = self.random.random() < 0.15
        ends_s = self.start_ms // 1000 + self.random.choice((600, 2 * HOUR_S, 26 * HOUR_S, 20 * DAY_S))
        self.meters = Meters(SCALES, ends_s - 59 * DAY_S)  # January has as many days as March
        self.postgres = OutboxServer(SHARDS, self.now_ms, self.meters, lambda: f"{self.random.getrandbits(64):x}")
        self.postgres.named = self._named
        skew_ms = self.random.choice((0, 0, -15_000, 15_000))
        clock = SimpleNamespace(now_ms=lambda: self.now_ms() + skew_ms, now_s=lambda: (self.now_ms() + skew_ms) // 1000)
        self.stripe = StripeServer(self.loop, Random(f"{seed} stripe"), clock, self.count)
        self.stripe.counted = self._counted
        self.stripe.burn = self.burn
        self.stripe.report = self._report
        self.counts = Counts()
        self.offices: list[Backoffice] = []
        self.planned: list[Step] = []
        self.fuses: dict[Process, int] = {}
        self.rows: dict[str, OutboxRow] = {}  # by identifier, as they were sent
        self.arrived: set[str] = set()
        self.sent: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._control = Process("control")
        self._numbered = 0
        self._begin()

    def _begin(self) -> None:
        tables = self.tables
        for metric in SCALES:
            self.stripe.add_meter(metric)
        for tenant in TENANTS:
            self.postgres.put_tenant(tenant)
            tables.customers[tenant] = Customer(self.stripe.add_customer(tenant))
        self.start_office()

    def now_ms(self) -> int:
        return self.start_ms + self.loop.elapsed_ms

    @property
    def tables(self) -> Outbox:
        return self.postgres.tables

    def backup(self) -> Outbox | None:
        found = self.postgres.backup()
        return found if isinstance(found, Outbox) else None

    @property
    def now_s(self) -> int:
        return self.now_ms() // 1000

    def note(self, text: str) -> None:
        self.history.append(f"{self.loop.elapsed_ms / 1000:10.3f}  {text}")

    def count(self, fault: str, about: str = "") -> None:
        self.faults[fault] += 1
        if about or not fault.startswith("stripe: "):
            self.note(f"-- {fault} {about}")

    def violated(self, invariant: str, about: str) -> None:
        self.note(f"VIOLATION {invariant}: {about}")
        self.violations.append(f"{invariant}: {about}")

    def plan(self, ms: int, call: Callable[..., None], *arguments: Any) -> None:
        self.planned.append(Step(self.loop.at(ms, call, *arguments)))

    # Processes.

    def start_office(self) -> Backoffice:
        self._numbered += 1
        office = Backoffice(self, f"o{self._numbered}")
        self.offices.append(office)
        self.note(f"{office.process.name} starts")
        return office

    def alive(self) -> list[Backoffice]:
        return [one for one in self.offices if one.process.alive]

    def kill(self, process: Process) -> None:
        if process.alive:
            self.note(f"{process.name} is killed")
            process.alive = False
            self.fuses.pop(process, None)
            self.postgres.forget(process)

    def burn(self, process: Process) -> bool:
        """Count one effect of a process; kill it just before the one at which its fuse has burnt down."""
        left = self.fuses.get(process)
        if left is not None:
            self.fuses[process] = left - 1
            if left <= 0:
                self.kill(process)
        return not process.alive

    async def answer(self, process: Process) -> None:
        """One round trip to Postgres."""
        if process in self.fuses:
            self.burn(process)
        if not process.alive:
            await self.loop.create_future()
        if self.random.random() < TAKES_TIME:
            await self.loop.pause_us(100 + below(self.random, 2_900, 12))
            if self.random.random() < CUT and not self.healed:
                self.count("connection to postgres cut")
                raise LedgerUnavailable("the connection was cut")

    healed = False

    # Usage.

    def use(self, tenant: str, metric: str, units: int, ago_s: int = 0) -> None:
        """Count usage of now, or of a while ago."""
        at_s = self.now_s - ago_s
        period_s = bounds("billing", at_s, self.meters.anchor_s, 1)[0]
        writer = self.random.choice(("w1", "w2"))
        self.counts.add((tenant, metric, "", period_s, at_s // HOUR_S, writer), units)

    def leap(self, ms: int) -> None:
        """Let time pass at once for everybody; what was on its way has arrived by then."""
        self.stripe.hurry()
        self.loop.leap(ms)

    # What Stripe takes.

    def _named(self, row: OutboxRow) -> None:
        self.rows[row.identifier] = row

    def _counted(self, event: Any, late_ms: int) -> None:
        """S1 as far as it holds at each event: nothing is counted twice, everything lies where it is billed."""
        self.arrived.add(event.identifier)
        lane = (event.customer.removeprefix("cus_"), event.meter.removeprefix("mtr_"))
        self.sent[lane] += event.value
        if self.sent[lane] > self.counts.total(*lane):
            self.violated("S1", f"Stripe has {self.sent[lane]} of {lane}, {self.counts.total(*lane)} were counted")
        row = self.rows.get(event.identifier)
        if row is None:
            return  # under a name of no row, as some mutations have it
        now_s, at_s = self.stripe.account.now, event.timestamp
        starts_s, ends_s = bounds("billing", max(row.period_s, row.hour_s), self.meters.anchor_s, 1)
        inside = starts_s <= at_s < ends_s and row.hour_s <= at_s < row.hour_s + HOUR_S
        if not inside and now_s < ends_s + CLOSE_DELAY_S - GUARD_S - SLACK_S:
            about = f"{at_s}, at {now_s}, is not in its window {row.hour_s} of {lane}, whose period ends at {ends_s}"
            self.violated("S1", about)
        final_s = bounds("billing", at_s, self.meters.anchor_s, 1)[1] + CLOSE_DELAY_S
        if now_s > final_s + SLACK_S and late_ms < CALL_MS_MAX:
            self.violated("S1", f"{at_s} of {lane} came at {now_s}, the invoice was final at {final_s}")

    def _report(self, key: str, code: str, message: str) -> None:
        """Stripe tells later, and maybe twice, that it did not take an event."""
        for _ in range(self.random.choice((1, 1, 2))):
            self.loop.after_us(self.random.randrange(100_000, 9_000_000), self._hear, key, code, message)

    def _hear(self, key: str, code: str, message: str) -> None:
        self._control.spawn(self.loop, self._rejected(key, code, message))

    async def _rejected(self, key: str, code: str, message: str) -> None:
        ledger: Any = OutboxLedger(self, self._control)
        while True:
            try:
                async with ledger.transaction() as tx:
                    await rejection.rejected(tx, key, code, message)
            except (Conflict, SidecarError):
                await asyncio.sleep(2)
            else:
                return


@contextmanager
def simulated(random: Random, loop: VirtualLoop, world_of: Callable[[str], None]) -> Iterator[None]:
    """Put the simulation in the place of what is random, and of the log that hides what nobody expects."""
    tokens = SimpleNamespace(token_hex=lambda size: f"{random.getrandbits(size * 8):0{size * 2}x}")
    module: Any = sys.modules[Forwarder.__module__]
    with ExitStack() as stack:
        stack.enter_context(virtual(loop))
        for name, value in (("secrets", tokens), ("random", random), ("log", _Log(world_of))):
            stack.enter_context(mock.patch.object(module, name, value))
        yield
