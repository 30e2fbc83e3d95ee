"""Writers whose wall clocks step, and a plan that comes and goes, against the real scripts: who holds what of a minute.

Messages are small, so that much of what there is to say has to wait for the next one.
"""

from __future__ import annotations

from random import Random

from sidecar.catalogue.snapshot import Snapshot
from sidecar.enforcement.account import Account
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.limit_state import LimitState
from sidecar.enforcement.sent import Sent
from sidecar.enforcement.terms import Terms
from sidecar.store import snapshots
from sidecar.store.messages import ENCODER, SYNC_REPLY, SyncMessage
from sidecar.usage.journal import Journal
from tests.simulation.lua import SCRIPTS
from tests.simulation.redis import MemoryRedis
from tests.unit.tenants import HARD, NOON_S, NOWHERE, ONE, applied, composed, limit, plan

CAP = 30
RULES = (
    limit(HARD, name="minute", period="minute", included=CAP, stop=CAP),
    limit(HARD, name="user", period="minute", scope="user", included=CAP, stop=CAP),
    limit(HARD, name="second", period="second", scope="user", included=CAP, stop=CAP),
)
USERS = tuple(f"u{number}" for number in range(6))
SCRIPT = SCRIPTS["sync"]
AHEAD_MS_MAX = 25_000

Call = tuple[SyncMessage, list[Sent], int]


class Stepping:
    """One writer with a wall clock of its own, ``ahead_ms`` of Redis'."""

    def __init__(self, name: str, snapshot: Snapshot) -> None:
        self.exchange = ShardExchange(0, name, Journal(NOWHERE, name), Terms(lease_rest_ms=5_000))
        self.account = Account(snapshot, self.exchange)
        self.exchange.accounts = {snapshot.tenant: self.account}
        self.ahead_ms = 0
        self.waiting: Call | None = None

    def give_up(self) -> None:
        """The call took too long; it may still arrive."""
        if self.waiting is not None:
            self.exchange.undo(self.waiting[1])
            self.waiting = None


class Covering:
    """The writers, one data set, and what was admitted by (limit, start of its period)."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = NOON_S * 1000
        self.redis = MemoryRedis(lambda: self.now, "a" * 40)
        known = {
            "gen": "g1",
            "replid": "a" * 40,
            "state": "open",
            "since": 0,
            "open_at": 0,
            "base": 0,
            "seen": self.now,
        }
        direct = self.now // 3_600_000 - 2
        self.redis.command(b"HSET", ("{s}epoch", *(part for one in known.items() for part in one), "direct", direct))
        self.admitted: dict[tuple[str, int], int] = {}
        self.snapshot = plan(*RULES, rev=0)
        self.change()
        self.writers = [Stepping(f"w{number}", self.snapshot) for number in range(3)]
        self.calls: list[tuple[Stepping, Call]] = []

    @staticmethod
    def keys(writer: str) -> list[str]:
        names = ("epoch", "writers", f"writer:{writer}", f"held:{writer}", "dirty", "called")
        return [f"{{s}}{name}" for name in names]

    def change(self) -> None:
        """Another plan, in which some of the limits may be missing."""
        rules = [rule for rule in RULES if self.random.random() < 0.8] or list(RULES)
        self.snapshot = plan(*rules, rev=self.snapshot.rev + 1)
        texts = ("rev", self.snapshot.rev, "doc", snapshots.encode(self.snapshot))
        limits = ("lim", snapshots.encode_limits(self.snapshot))
        self.redis.command(b"HSET", (f"{{s}}tenant:{self.snapshot.tenant}", *texts, *limits))

    def request(self, writer: Stepping) -> None:
        """What the enforcer does with a request."""
        charge = writer.account.charge(ONE, "", self.random.choice(USERS), (self.now + writer.ahead_ms) // 1000)
        writer.exchange.touch(writer.account)
        short = [state for _, state, units in charge.limits if state.left < units]
        if short or not writer.exchange.spendable(self.now):
            for state in short:
                state.wait_for(1)
            return
        for _, state, units in charge.limits:
            state.spend(units)
            key = state.id, state.period.start_s
            self.admitted[key] = self.admitted.get(key, 0) + units

    def send(self, writer: Stepping) -> None:
        writer.give_up()
        writer.exchange.wall_s = (self.now + writer.ahead_ms) // 1000
        writer.waiting = (*composed(writer.exchange, self.now), self.now)
        self.calls.append((writer, writer.waiting))

    def deliver(self, *, answered: bool) -> None:
        """One of the calls on their way arrives; its answer may be lost."""
        if not self.calls:
            return
        writer, call = self.calls.pop(self.random.randrange(len(self.calls)))
        words = (ENCODER.encode(("{s}", 0, "g2")), 60_000, ENCODER.encode(call[0]))
        answer = SYNC_REPLY.decode(self.redis.execute(("EVAL", SCRIPT.text, 6, *self.keys(call[0].writer), *words)))
        if not answered or writer.waiting is not call:
            return
        writer.waiting = None
        applied(writer.exchange, call[0], call[1], answer, call[2], self.now)
        if writer.exchange.stale:
            writer.exchange.stale.clear()
            writer.account.adopt(self.snapshot)

    def step(self) -> None:
        """Let one thing happen."""
        draw = self.random.random()
        writer = self.random.choice(self.writers)
        if draw < 0.4:
            for _ in range(self.random.randrange(1, 20)):
                self.request(writer)
        elif draw < 0.8:
            self.send(writer)
            for _ in range(self.random.randrange(1, 3)):
                self.deliver(answered=self.random.random() < 0.8)
        elif draw < 0.9:
            to_the_end = (59_000 - self.now) % 60_000
            self.now += self.random.choice((100, 300, 1_000, to_the_end))
        elif draw < 0.98:
            there = writer.ahead_ms + self.random.choice((-3_000, -1_000, 1_000, 3_000))
            writer.ahead_ms = max(-AHEAD_MS_MAX, min(AHEAD_MS_MAX, there))
        else:
            self.change()

    def uncovered(self) -> list[str]:
        """What writers may spend of a limit and Redis has neither set aside for them nor heard of as spent."""
        return [
            f"{writer.exchange.writer}: {state.id} of {state.period.start_s}"
            for writer in self.writers
            if writer.exchange.spendable(self.now)
            for state in writer.account.states()
            if state.left and not state.period.over((self.now + writer.ahead_ms) // 1000)
            if not self._covers(writer, state)
        ]

    def _covers(self, writer: Stepping, state: LimitState) -> bool:
        name, key = writer.exchange.writer, f"{{s}}limit:{writer.account.tenant}:{state.id}:{state.period.start_s}"
        values = self.redis.command(b"HMGET", (key, f"l:{name}", f"c:{name}", "g"))
        set_aside, heard = (int(value or 0) for value in values[:2])
        return values[2] is None or set_aside + heard >= state.left + state.own
