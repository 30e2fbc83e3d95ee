"""Writers, a shard and a ledger in virtual time, with every message in the test's hands.

The writers are the real ShardExchange and Account; Redis is the model that test_scripts.py holds the scripts to. The
whole system runs in tests/simulation; this stays small enough to think through a failure by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sidecar.catalogue.model import RouteRule
from sidecar.catalogue.period import bounds
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.enforcement.account import Account
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.sent import Sent
from sidecar.enforcement.terms import Terms
from sidecar.store.messages import SYNC_REPLY, SyncMessage
from sidecar.store.snapshots import script_limits
from sidecar.usage.journal import Journal
from tests.properties.models import passes
from tests.properties.models.shard import Shard
from tests.unit.tenants import applied, composed

START_MS = 1_772_366_400_000  # 2026-03-01 12:00:00 UTC
TERMS = Terms(lease_rest_ms=30_000)  # well within what ``quiet`` waits for
ROUTES = {cost: RouteRule(name=f"cost {cost}", costs={"api": cost}) for cost in range(1, 10)}
NOWHERE = Path("/dev/null/journal")


def snapshot(rev: int, stop: int, period: Any = "day") -> Snapshot:
    limit = LimitRule("calls", "api", period, "tenant", (), stop, stop, "deny", 0, "closed", 0, shadow=False)
    return Snapshot("acme", rev, "plan", "active", 0, "", 0, 1, {}, (), shadow=False, limits=(limit,))


class Call(NamedTuple):
    message: SyncMessage
    sent: list[Sent]
    sent_ms: int


class Writer:
    """One life of a worker, with at most one call in flight that it still waits for."""

    def __init__(self, name: str, terms: Snapshot) -> None:
        self.name = name
        self.journal = Journal(NOWHERE, name)  # there is no such folder: it counts in memory
        self.exchange = ShardExchange(0, name, self.journal, TERMS)
        self.account = Account(terms, self.exchange)
        self.exchange.accounts = {terms.tenant: self.account}
        self.waiting: Call | None = None
        self.reads_snapshots = True

    def spend(self, units: int, now_ms: int, wall_ms: int) -> bool:
        """What the enforcer does with a request; False when it would have to ask Redis."""
        exchange, wall_s = self.exchange, wall_ms // 1000
        exchange.hour = wall_s // 3600
        charge = self.account.charge(ROUTES[units], "", "", wall_s)
        [(_, state, _)] = charge.limits
        exchange.touch(self.account)
        if state.left < units or not exchange.spendable(now_ms):
            state.wait_for(units)
            return False
        window = exchange.window(self.account, ("api", self.account.period(wall_s), wall_s // 3600))
        window.view[window.index] += units
        state.spend(units)
        return True

    def counted(self) -> list[list[Any]]:
        """What its journal holds."""
        return [[*window.id, window.value] for window in self.account.windows.values()]


class Leasing:
    """The world: writers, calls on their way, the model of Redis, and what the ledger has."""

    def __init__(self, writers: int, stop: int, period: str = "day") -> None:
        self.now = 1_000_000
        self.shard = Shard("{s}:", START_MS)
        self.terms = snapshot(1, stop, period)
        self.lives = 0
        self.begun = 0  # names of generations are never given twice, whatever the clock says
        self.writers = [self.born() for _ in range(writers)]
        self.calls: list[tuple[Writer, Call]] = []
        self.replies: list[tuple[Writer, Call, list[Any]]] = []
        self.ledger: dict[tuple[str, str, int, int, str], int] = {}
        self.epoch = 0
        self.admitted = 0
        self.admitted_from: dict[int, int] = {}  # by the start of the period (unix s)
        self.restored = ""
        self.journals: list[tuple[str, list[list[Any]]]] = []
        self.excused: dict[str, int] = {}
        self.flush()
        self.open(first=True)
        for writer in self.writers:
            self.exchange(writer)

    def born(self) -> Writer:
        self.lives += 1
        return Writer(f"w{self.lives}", self.terms)

    @property
    def wall_ms(self) -> int:
        return self.shard.now

    @property
    def admissible(self) -> int:
        """The cap, and the one exception to it: what a writer that was silent too long had spent unknown to anybody.

        That is what the ledger does not have, for Redis may have been wiped meanwhile.
        """
        stop = self.terms.limits[0].stop
        return (stop or 0) + sum(self.excused.values())

    def step(self, ms: int) -> None:
        self.now += ms
        self.shard.clock += ms
        for writer in self.writers:
            if self.now >= writer.exchange.gone_after_ms:
                self.excused[writer.name] = max(self.excused.get(writer.name, 0), self.unknown(writer))

    def unknown(self, writer: Writer) -> int:
        return sum(
            window.value - self.ledger.get((*window.key, writer.name), 0) for window in writer.account.windows.values()
        )

    def request(self, writer: Writer, units: int) -> bool:
        allowed = writer.spend(units, self.now, self.wall_ms)
        self.admitted += units * allowed
        start_s = self.start_s
        self.admitted_from[start_s] = self.admitted_from.get(start_s, 0) + units * allowed
        return allowed

    @property
    def start_s(self) -> int:
        """When the limit's current period began."""
        rule = self.terms.limits[0]
        return bounds(rule.period, self.wall_ms // 1000, self.terms.anchor_s, self.terms.interval_months)[0]

    def send(self, writer: Writer) -> None:
        if writer.waiting is not None:
            self.give_up(writer)
        writer.exchange.wall_s = self.wall_ms // 1000
        writer.waiting = Call(*composed(writer.exchange, self.now), self.now)
        self.calls.append((writer, writer.waiting))

    def give_up(self, writer: Writer) -> None:
        """The call took too long; it may still arrive, and so may its reply."""
        if writer.waiting is not None:
            writer.exchange.undo(writer.waiting.sent)
            writer.waiting = None

    def deliver(self, index: int, *, again: bool = False) -> None:
        writer, call = self.calls[index] if again else self.calls.pop(index)
        self.begin()
        reply = self.shard.sync(TERMS.reclaim_after_ms, plain(call.message))
        self.replies.append((writer, call, reply))

    def answer(self, index: int) -> None:
        """A reply arrives; one to a call that was given up is not for anybody, but is tried on the exchange."""
        writer, call, reply = self.replies.pop(index)
        decoded = SYNC_REPLY.decode(msgspec.msgpack.encode(reply))
        applied(writer.exchange, call.message, call.sent, decoded, call.sent_ms, self.now)
        if writer.waiting is call:
            writer.waiting = None
        if writer.exchange.stale:
            writer.exchange.stale.clear()
            if writer.reads_snapshots:
                writer.account.adopt(self.terms)

    def exchange(self, writer: Writer) -> None:
        """A call without accidents."""
        self.send(writer)
        self.deliver(len(self.calls) - 1)
        self.answer(len(self.replies) - 1)

    def change_plan(self, stop: int) -> None:
        self.terms = snapshot(self.terms.rev + 1, stop, self.terms.limits[0].period)
        self.flush()

    def kill(self, index: int) -> None:
        """The process dies; its successor on the same disk reports its windows, then its death."""
        old = self.writers[index]
        self.writers[index] = self.born()
        self.journals.append((old.name, old.counted()))
        self.adopt()
        held = set(self.shard.keys.sets.get(f"{self.shard.tag}held:{old.name}", set()))
        self.shard.retire(old.name, 500, 0, held)

    def adopt(self) -> None:
        """Report the journals of dead writers, again and again until the ledger has them."""
        self.begin()
        revision = self.shard.keys.number(self.shard.tenant_key("acme"), "rev")
        for name, windows in self.journals:
            self.shard.sync(TERMS.reclaim_after_ms, [name, 0, "", 0, [["acme", revision, windows, []]]])

    def wipe(self) -> None:
        clock = self.shard.clock
        self.shard = Shard("{s}:", clock)

    def flush(self) -> None:
        """A pass of the flusher; also projects the plan, and restores after a loss."""
        self.adopt()
        shard = self.shard
        collected = passes.collect(shard, self.epoch, 1000, TERMS.reclaim_after_ms)
        generation, state, base, direct, windows = (*collected[:4], collected[9])
        for tenant, series, period, hour, _, values in windows:
            for writer, value in values.items():
                key = (tenant, series, period, hour, writer)
                self.ledger[key] = max(self.ledger.get(key, 0), value)
        in_ledger = {(key[4], *key[1:4], value) for key, value in self.ledger.items()}
        self.journals = [one for one in self.journals if any((one[0], *window) not in in_ledger for window in one[1])]
        if windows:
            self.epoch = max(self.epoch, collected[5]) + 1
        if state == "held":
            passes.merge(shard, generation, [[*key, value] for key, value in self.ledger.items() if key[3] >= base])
        older = sum(value for key, value in self.ledger.items() if key[3] < direct)
        rule = self.terms.limits[0]
        rows = [rule.name, 0, older, 2**40 * 1000] if rule.period == "lifetime" else []
        limits = [list(limit) for limit in script_limits(self.terms)]
        passes.publish(
            shard, ["acme", self.terms.rev, limits, generation, direct, rows, collected[7], collected[11]], "document"
        )
        passes.settle(shard, generation, self.epoch, [window[:5] for window in windows])
        if state == "held" and self.restored:
            self.open(first=False)
        for silent in collected[8]:
            held = set(shard.keys.sets.get(f"{shard.tag}held:{silent}", set()))
            shard.retire(silent, 500, TERMS.reclaim_after_ms, held)

    def open(self, *, first: bool) -> None:
        generation = self.shard.generation
        passes.open_(self.shard, generation, first=first, reclaim_after=TERMS.reclaim_after_ms, hold="full", writers=[])
        self.restored = generation

    def begin(self) -> None:
        self.begun += 1
        self.shard.begin(f"g{self.begun}")

    def quiet(self, ms: int = 75_000) -> None:
        """Everything on its way is lost, nobody spends, and time goes by with syncs and passes."""
        self.calls.clear()
        self.replies.clear()
        for _ in range(ms // 500):
            self.step(500)
            self.flush()
            for writer in self.writers:
                self.exchange(writer)

    def kept(self) -> dict[str, int]:
        """What Redis has of the limit: spent, held, and leases."""
        key = self.shard.limit_key("acme", "calls", self.start_s)
        return {field: self.shard.keys.number(key, field) for field in ("spent", "held", "n")}


def plain(message: SyncMessage) -> list[Any]:
    """A message as the script sees it."""
    decoded: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    return decoded
