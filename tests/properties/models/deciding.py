"""One worker that decides for one tenant, with the fast path or without; Redis and time are what a test says."""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.catalogue.model import Catalogue, RouteRule
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.catalogue.snapshot import Snapshot
from sidecar.clock import MS_NS
from sidecar.enforcement.decision import Decision, Identity
from sidecar.enforcement.directory import Directory
from sidecar.enforcement.enforcer import Enforcer, Shortage
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.fast_path import Allowance, Check
from sidecar.enforcement.repeats import Repeats
from sidecar.enforcement.survey import degraded_limits
from sidecar.enforcement.verdict import DEGRADED
from sidecar.store.messages import LeaseReply, SyncReply, TenantReply
from sidecar.telemetry import CoreCounters
from tests.unit.tenants import NOON_S, applied, composed, exchange

REPEAT_MS = 10_000
ROUTES = (RouteRule(name="one", costs={"api": 1}), RouteRule(name="ten", costs={"api": 10, "other": 1}))


class World:
    """One worker with one tenant, without Redis; everything from outside is a step."""

    def __init__(self, *, fast: bool) -> None:
        self.fast = fast
        self.mono_ms, self.wall = 1_000_000, NOON_S * 1_000
        self.requested = 0
        self.fast_ones = self.degraded_ones = 0
        self.reachable = self.granting = True
        self.floor_ms = 0
        self.exchange = exchange()
        self.revision = 0
        counters = CoreCounters()
        self.directory = Directory([self.exchange], Stub(self), self, counters, tenants_max=100, keys_max=100)  # type: ignore[arg-type]
        catalogue = Catalogue(metrics={}, plans={}, routes=ROUTES, identity=())
        self.directory.policy = Policy(catalogue, RouteTable(ROUTES), 1)
        self.enforcer = Enforcer(self.directory, self, Stub(self), self, counters, Repeats(REPEAT_MS))  # type: ignore[arg-type]
        users = ("", "bob")
        self.checks = [Check(Identity("acme", user=user), route) for user in users for route in ROUTES]

    # The clocks, and the synchroniser's part that is called.

    def wall_ms(self) -> int:
        return self.wall

    def wall_s(self) -> int:
        return self.wall // 1_000

    def monotonic_ms(self) -> int:
        return self.mono_ms

    def monotonic_ns(self) -> int:
        return self.monotonic_ms() * MS_NS

    def request(self, exchange: ShardExchange) -> None:
        self.requested += 1

    # Steps.

    def adopt(self, snapshot: Snapshot) -> None:
        self.revision += 1
        self.directory._admit(msgspec.structs.replace(snapshot, rev=self.revision), None)

    def ask(self, number: int, request_id: bytes) -> Any:
        check = self.checks[number]
        if self.fast:
            allowance: Allowance | None = self.enforcer.allow_known(check, request_id)
            if allowance is not None:
                self.fast_ones += 1
                self.degraded_ones += allowance.mark == DEGRADED
                return told(allowance.decision(allowance.remaining, allowance.reset_s))
        decision = self.enforcer.decide(check.identity, check.route, request_id.decode())
        if self.fast and decision is not None and decision.allow:
            self.enforcer.get_to_know(check)
        if decision is None:
            self.wait_for(check)
        return decision and told(decision)

    def wait_for(self, check: Check) -> None:
        """Say what is short, as a request does that waits for the next sync."""
        account = self.directory.accounts["acme"]
        short = self.enforcer._examine(account, check.identity, check.route, self.mono_ms)
        for owner, state, units in short.limits if isinstance(short, Shortage) else ():
            state.wait_for(units)
            owner.exchange.touch(owner)

    def sync(self, units: int, spent: int, *, called: bool) -> None:
        """Redis answers at once; each lease that is asked for gets at most ``units``, and none while it is restored."""
        self.reachable = True
        units *= self.granting
        message, sent = composed(self.exchange, self.mono_ms)
        parts = [
            TenantReply(
                self.revision,
                [
                    LeaseReply(lease.left + units if lease.want else lease.left, spent, units, 0, called)
                    for lease in part.leases
                ],
            )
            for part in message.parts
        ]
        accepted = message.generation == "g1"
        reply = SyncReply("g1", self.granting, 0, 1, accepted, parts, self.wall // 3_600_000)
        self.exchange.hour = self.wall // 3_600_000
        applied(self.exchange, message, sent, reply, self.mono_ms, self.mono_ms)

    def wait(self, ms: int) -> None:
        self.mono_ms += ms
        self.wall += ms

    def lose(self) -> None:
        """A report is made, and nobody answers."""
        _, sent = composed(self.exchange, self.mono_ms)
        self.exchange.undo(sent)

    def seen(self) -> Any:
        account = self.directory.accounts["acme"]
        limits = {
            state.id: (
                state.used,
                state.own,
                state.left,
                bool(state.over_ms),
                state.lease.need,
                state.outage_used,
                state.lease.refused,
                state.lease.renewing,
            )
            for state in account.limits.values()
        }
        # One that was only looked at is none, even if it was reported.
        limits = {name: told for name, told in limits.items() if any(told[:-1])}
        windows = {window.key: window.value for window in account.windows.values()}
        dirty = {window.key for window in account.windows.values() if window.dirty}
        degraded = sum(degraded_limits(self.exchange))
        return limits, windows, dirty, account.touched, bool(self.requested), degraded


class Stub:
    """The part of the store that decisions from memory ask for."""

    def __init__(self, world: World) -> None:
        self.keys = self
        self._world = world

    def shard_of(self, tenant: str) -> int:
        return 0

    def reachable(self, shard: int) -> bool:
        return self._world.reachable


def told(decision: Decision) -> Any:
    """What a client is told; of several limits the fast path may show another one for a moment, as it says."""
    one = decision.limit
    return decision.allow, decision.reason, decision.quota_status, one and (one.name, one.remaining, one.reset_s)
