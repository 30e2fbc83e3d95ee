"""A worker in the simulation: the program's whole enforcement core, as one process on one machine's disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sidecar.enforcement import synchroniser
from sidecar.enforcement.core import Core
from sidecar.enforcement.decision import Decision, Identity
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.fast_path import Allowance, Check
from sidecar.enforcement.synchroniser import Synchroniser
from sidecar.enforcement.terms import Terms
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.telemetry import CoreCounters
from sidecar.usage.journal import RECORD, RECORD_GRAIN
from tests.simulation.clock import MachineClock
from tests.simulation.oracle import Oracle
from tests.simulation.scheduler import Killed, Process, VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.catalogue.model import RouteRule
    from sidecar.enforcement.charge import Charge
    from sidecar.enforcement.limit_state import LimitState
    from sidecar.enforcement.sent import Sent

TERMS = Terms(lease_ttl_ms=2_000, reclaim_after_ms=12_000, lease_seconds=2, lease_units_max=50, lease_rest_ms=8_000)
STORE_TIMEOUT_MS = 50
SYNC_INTERVAL_MS = 500
synchroniser.TENANTS_AT_ONCE = 1  # there are few tenants, and something may come between any two


def settings(folder: Path) -> Any:
    return SimpleNamespace(
        state=folder,
        **TERMS._asdict(),
        sync_interval_ms=SYNC_INTERVAL_MS,
        changes_interval_ms=2_000,
        request_repeat_s=0,
        tenants_cached_max=100,
        keys_cached_max=100,
    )


class Worker:
    """One life of a worker."""

    def __init__(
        self,
        name: str,
        folder: Path,
        loop: VirtualLoop,
        clock: MachineClock,
        oracle: Oracle,
        again: Callable[[], bool],
        counted: Callable[[Charge], None],
    ) -> None:
        self.process = Process(name)
        self.folder = folder
        self.clock = clock
        self.stopping = False
        self.started = False
        self._loop = loop
        self._oracle = oracle
        self._again = again
        self._counted = counted
        self._answered: dict[int, int] = {}  # by shard, the latest message that was answered
        self._checks: dict[tuple[str, str, int], Check] = {}  # by tenant, user and the id of a route
        self.core: Core = self.process.run(self._build)

    def _build(self) -> Core:
        name = self.process.name
        keys = Keyspace("sc", SHARDS)
        store = Store(f"sim://{name}", keys, self.clock, identity=name, timeout_ms=STORE_TIMEOUT_MS)
        core = Core(settings(self.folder), store, self.clock, CoreCounters(self.clock.monotonic_ms()))
        spend = core.enforcer._spend

        def watched(charge: Charge, unleased: set[LimitState], wall_ms: int) -> None:
            spend(charge, unleased, wall_ms)
            self._oracle.spent(core.writer, charge, unleased, wall_ms)
            self._counted(charge)

        core.enforcer._spend = watched  # type: ignore[method-assign, assignment]
        allow = core.enforcer.allow_known

        def watched_too(check: Check, request_id: bytes) -> Allowance | None:
            known, allowance = check.known, allow(check, request_id)
            if known is not None and allowance is not None:
                unleased = {state for state, _ in known.charge.spends if state.lease.uncovered}
                self._oracle.spent(core.writer, known.charge, unleased, core.enforcer._fast_path._wall_now_ms)
                self._counted(known.charge)
            return allowance

        core.enforcer.allow_known = watched_too
        for exchange in core.exchanges:
            self._repeat_replies(exchange)
        self._watch_waiters(core.synchroniser)
        return core

    def _watch_waiters(self, synchroniser: Synchroniser) -> None:
        """Who waits is answered by a message sent after it joined: an earlier one does not say what it needs."""
        join = synchroniser.join

        def joined(exchange: ShardExchange) -> asyncio.Future[bool]:
            before = exchange._sequence
            waiter = join(exchange)

            def answered(waiter: asyncio.Future[bool]) -> None:
                if not waiter.cancelled() and waiter.result() and self._answered.get(exchange.shard, 0) <= before:
                    self._oracle.violated("L3", f"{self.process.name} answered a waiter by a message from before it")

            waiter.add_done_callback(answered)
            return waiter

        synchroniser.join = joined  # type: ignore[method-assign]

    def _repeat_replies(self, exchange: ShardExchange) -> None:
        """Let replies come once more, after their successors: transports differ, the exchange has to cope."""
        take_over = exchange.applied
        earlier: list[tuple[Any, Any, Any, int]] = []

        def applied(message: Any, sent: Any, reply: Any, sent_ms: int, now_ms: int) -> Iterator[Sent]:
            before_ms = exchange.valid_until_ms
            yield from take_over(message, sent, reply, sent_ms, now_ms)
            if exchange.valid_until_ms > max(before_ms, sent_ms + TERMS.lease_ttl_ms):
                self._oracle.violated("L1", f"{self.process.name} goes by a reply for too long")
            self._answered[exchange.shard] = message.sequence
            if earlier and earlier[0][0].sequence != message.sequence and self._again():
                states = [state for one in earlier[0][1] for state, _, _ in one.limits]
                before = [state.left for state in states]
                for _ in take_over(*earlier[0], now_ms):
                    pass
                if [state.left for state in states] != before and exchange.generation == earlier[0][2].generation:
                    self._oracle.violated("L1", f"{self.process.name} goes by a reply that is superseded")
            earlier[:] = [(message, sent, reply, sent_ms)]

        exchange.applied = applied  # type: ignore[method-assign]

    def start(self) -> None:
        self.process.spawn(self._loop, self._start())

    async def _start(self) -> None:
        await self.core.start()
        self.started = True

    def request(self, tenant: str, route: RouteRule, user: str, answer: Callable[[Worker, Decision], None]) -> None:
        """Decide a request as the gateway's listener does; ``answer`` is called with the decision."""
        if self.started and self.process.alive and not self.process.paused:
            with suppress(Killed):
                self.process.run(self._request, tenant, route, user, answer)

    def _request(self, tenant: str, route: RouteRule, user: str, answer: Callable[[Worker, Decision], None]) -> None:
        enforcer = self.core.enforcer
        key = tenant, user, id(route)
        check = self._checks.get(key) or self._checks.setdefault(key, Check(Identity(tenant=tenant, user=user), route))
        allowance = enforcer.allow_known(check, b"")
        if allowance is not None:
            answer(self, allowance.decision(allowance.remaining, allowance.reset_s))
            return
        decision = enforcer.decide(check.identity, route, "")
        if decision is None:
            self.process.spawn(self._loop, self._waiting(check.identity, route, answer))
            return
        if decision.allow:
            enforcer.get_to_know(check)
        answer(self, decision)

    async def _waiting(self, identity: Identity, route: RouteRule, answer: Callable[[Worker, Decision], None]) -> None:
        answer(self, await self.core.enforcer.decide_waiting(identity, route, ""))

    def stop(self, drain_s: float) -> None:
        """Stop cleanly."""
        self.stopping = True
        self.process.spawn(self._loop, self._stop(drain_s))

    async def _stop(self, drain_s: float) -> None:
        await self.core.stop(drain_s)
        self.process.alive = False

    def kill(self, *, torn: bool) -> None:
        """End between two steps; ``torn`` leaves half a record at the journal's end."""
        self.process.alive = False
        journal = self.core.journal
        if torn and journal._blocks and journal._end + RECORD_GRAIN * 2 <= len(journal._blocks[-1][0]):
            RECORD.pack_into(journal._blocks[-1][0], journal._end, RECORD_GRAIN * 2, 0x1234, 0, 20)
        self.core._adoption.close()
        journal.close(delete=False)


SHARDS = 2
