"""Writers: cores as a worker process has one each, driven from outside in steps of a clock that all of them share.

Everything between a decision and Redis is the program's own. What differs: nobody waits between two steps, so a
second of the fleet takes as long as the machine needs; journals are in memory. Where real time is waited for, at the
start and for a change, their clock runs with it: an open breaker of a clock that stands still would never be tried.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.catalogue.load import parse
from sidecar.catalogue.resolve import resolve
from sidecar.clock import MS_NS, Clock
from sidecar.enforcement.core import Core
from sidecar.enforcement.decision import Decision, Identity
from sidecar.enforcement.synchroniser import PARTS
from sidecar.settings import Settings
from sidecar.store import snapshots
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.store.messages import Publication
from sidecar.telemetry import CoreCounters

if TYPE_CHECKING:
    from bench.scale.watch import Watch

CATALOGUE = """
metrics: {api_calls: {}}
plans:
  standard: {price: 0, limits: {api_calls: {included: 1000000000000, period: month, cap: hard}}}
  capped: {price: 0, limits: {api_calls: {included: %d, period: month, cap: hard}}}
routes:
  - {name: many, match: GET /many, costs: {api_calls: 10}}
identity: [{header: x-tenant-id}]
default_plan: standard
"""
CAP = 100_000
STEP_MS = 500 // PARTS
BEGAN_MS = 1_000_000
WRITERS_AT_ONCE = 32
WAITING_AT_ONCE = 16
LOOKS_A_TURN = 20

Pick = Callable[[int], Iterable[str]]


class SteppedClock(Clock):
    """Stands still until it is moved, or while it is ``running``."""

    __slots__ = ("_ahead_ms", "_run_since_ms", "moved_ms")

    def __init__(self) -> None:
        super().__init__()
        self.moved_ms = BEGAN_MS
        self._ahead_ms = super().wall_ms() - BEGAN_MS
        self._run_since_ms: int | None = None

    def wall_ms(self) -> int:
        return self._ahead_ms + self.monotonic_ms()

    def monotonic_ms(self) -> int:
        return self.moved_ms + self._run_ms()

    @property
    def monotonic_ns(self) -> Callable[[], int]:
        return lambda: self.monotonic_ms() * MS_NS

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let it go on with real time meanwhile."""
        self._run_since_ms = super().monotonic_ms()
        try:
            yield
        finally:
            self.moved_ms += self._run_ms()
            self._run_since_ms = None

    def _run_ms(self) -> int:
        return 0 if self._run_since_ms is None else super().monotonic_ms() - self._run_since_ms


class Fleet:
    """So many writers on one Redis."""

    def __init__(self, url: str, directory: Path, writers: int, watch: Watch) -> None:
        self.watch = watch
        self.keys = Keyspace(f"scale{writers}")
        self.clock = SteppedClock()
        self._url = url
        self._settings = Settings(state_dir=str(directory), tenants_cached_max=200_000)
        (directory / "journals").touch()  # a file where the folder should be: journals stay in memory
        self.cores: list[Core] = []
        self.stores: list[Store] = []
        self.backoffice = self._store("flusher", Clock(), 30_000)
        self.revision = 0
        self.catalogue = parse(CATALOGUE % CAP, "scale")
        self._tasks: list[asyncio.Task[None]] = []
        self._writers = writers
        self.allowed = self.refused = self.unanswered = 0
        self._seeded = random.Random(writers)

    def _store(self, name: str, clock: Clock, timeout_ms: int) -> Store:
        store = Store(self._url, self.keys, clock, identity=name, timeout_ms=timeout_ms)
        self.stores.append(store)
        return store

    async def start(self) -> None:
        """Give Redis a catalogue, let every shard grant, and connect every writer."""
        with self.clock.running():
            await self._start()

    async def _start(self) -> None:
        await self.backoffice.put_catalogue(1, CATALOGUE % CAP)
        await self.backoffice.announce([("catalogue", "")])
        for shard in range(self.keys.shards):
            generation = (await self.backoffice.collect(shard, 0, 0, 60_000)).generation
            await self.backoffice.open(
                shard, generation, first=True, reclaim_after_ms=60_000, hold="reported", writers=[]
            )
        for number in range(self._writers):
            self.watch.doing(f"the first look at Redis of writer {number}")
            store = self._store(f"w{number}", self.clock, 5_000)
            core = Core(self._settings, store, self.clock, CoreCounters())
            await core.changes.first_policy()
            await core.changes.catch_up()  # a first look has all tenants in memory read again: before there are any
            self._tasks.append(asyncio.create_task(core.directory.run()))
            self.cores.append(core)

    def check(self, others: Iterable[asyncio.Task[None]]) -> None:
        """Raise what ended a loop of a writer, or one of the others, if something did."""
        for task in (*self._tasks, *others):
            if task.done():
                task.result()

    async def stop(self) -> None:
        self.watch.doing("the end of all writers")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for core in self.cores:
            await core.synchroniser.close()
            core.journal.close(delete=True)
        for store in self.stores:
            await store.close()

    async def publish(self, tenant: str, plan: str, status: str = "active") -> int:
        """What a projection does with a changed tenant; returns its new revision."""
        self.revision += 1
        snapshot = resolve(
            self.catalogue,
            tenant=tenant,
            rev=self.revision,
            plan=plan,
            status=status,
            status_until_s=0,
            parent="",
            anchor_s=0,
            shadow=False,
            overrides={},
        )
        shard = self.keys.shard_of(tenant)
        now = await self.backoffice.collect(shard, 0, 0, 60_000)
        limits = snapshots.script_limits(snapshot)
        one = Publication(tenant, snapshot.rev, snapshots.encode(snapshot), limits, [])
        standing = await self.backoffice.publish(shard, [one], now, version=now.version)
        assert standing == [snapshot.rev], standing
        await self.backoffice.announce([("tenant", tenant)])
        return snapshot.rev

    async def meet(self, tenants: Iterable[str], path: str) -> None:
        """Let every writer know these tenants and hold a first lease of each, by one message a shard.

        Met by requests, each tenant would cost each writer two calls, which for a thousand writers takes minutes.
        """
        route = self.cores[0].enforcer.policy.routes.match("GET", "", path)
        first = [account for name in tenants if (account := await self.cores[0].directory.load(name)) is not None]
        found = [(account.tenant, await self.backoffice.lookup(account.tenant)) for account in first]
        documents = [(tenant, snapshots.decode(one.document)) for tenant, one in found]
        for number in range(0, len(self.cores), WRITERS_AT_ONCE):
            some = self.cores[number : number + WRITERS_AT_ONCE]
            self.watch.doing(f"the first leases of writer {number} and those after it")
            for _ in range(2):  # the first message of a writer only learns the generation
                for core in some:
                    for _, snapshot in documents:
                        account = core.directory._admit(snapshot, None)
                        for owner, state, units in account.charge(route, "", "", self.clock.wall_s()).limits:
                            state.wait_for(0 if state.left else units)
                            owner.exchange.touch(owner)
                    for exchange in core.exchanges:
                        core.synchroniser.request(exchange)
                await asyncio.gather(*(core.synchroniser.close() for core in some))

    async def step(self, pick: Pick, per_second: float, path: str = "/") -> None:
        """Every writer decides what comes in one step of the clock, and syncs a part of its shards."""
        for part in range(PARTS):
            self.clock.moved_ms += STEP_MS
            for first in range(0, len(self.cores), WRITERS_AT_ONCE):
                some = self.cores[first : first + WRITERS_AT_ONCE]
                waiting: list[tuple[Core, str]] = []
                for core in some:
                    due = per_second * STEP_MS / 1000
                    count = int(due) + (self._seeded.random() < due % 1)
                    waiting += [(core, name) for name in pick(count) if not self._decided(core, name, path)]
                self.watch.doing(f"{len(waiting)} requests that wait at writer {first} and those after it")
                await self._wait(waiting, path)
                self.watch.doing(f"calls of writer {first} and those after it")
                for core in some:
                    for exchange in core.synchroniser.due(part):
                        core.synchroniser.start(exchange)
                await asyncio.gather(*(core.synchroniser.close() for core in some))

    def _decided(self, core: Core, tenant: str, path: str) -> bool:
        enforcer = core.enforcer
        decision = enforcer.decide(Identity(tenant), enforcer.policy.routes.match("GET", "", path), "")
        if decision is not None:
            self._count(decision)
        return decision is not None

    async def _wait(self, waiting: list[tuple[Core, str]], path: str) -> None:
        free = asyncio.Semaphore(WAITING_AT_ONCE)

        async def one(core: Core, tenant: str) -> None:
            async with free:
                enforcer = core.enforcer
                route = enforcer.policy.routes.match("GET", "", path)
                self._count(await enforcer.decide_waiting(Identity(tenant), route, ""))

        await asyncio.gather(*(one(core, tenant) for core, tenant in waiting))

    def _count(self, decision: Decision) -> None:
        if decision.allow:
            self.allowed += 1
        elif decision.status == 429:
            self.refused += 1
        else:
            self.unanswered += 1  # Redis was not heard of within 50 ms: this machine is busy

    async def look(self, writers: int, interval_s: float) -> None:
        """What so many writers ask of the stream of changes when nothing was announced, in batches."""
        server = await self.backoffice._calls.servers.owner(self.keys.changes)
        while True:
            pipe = server.pipeline(transaction=False)
            for _ in range(writers // LOOKS_A_TURN):
                pipe.execute_command("XREVRANGE", self.keys.changes, "+", "-", "COUNT", 1)
            await pipe.execute()
            await asyncio.sleep(interval_s / LOOKS_A_TURN)
