"""The fast path allows, counts, marks and asks for leases as the enforcer does that never takes it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sidecar.catalogue.model import Catalogue, RouteRule
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.enforcement.decision import Decision, Identity
from sidecar.enforcement.directory import Directory
from sidecar.enforcement.enforcer import Enforcer, Shortage
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.fast_path import Allowance, Check, FastPath
from sidecar.enforcement.repeats import Repeats
from sidecar.store.messages import LeaseReply, SyncReply, TenantReply
from sidecar.telemetry import CoreCounters
from tests.unit.tenants import HARD, NOON_S, exchange, limit, plan

REPEAT_MS = 10_000
ROUTES = (RouteRule(name="one", costs={"api": 1}), RouteRule(name="ten", costs={"api": 10, "other": 1}))
LIMITS: list[tuple[LimitRule, ...]] = [
    (HARD,),
    (limit(included=None, stop=None, on_outage="open"),),
    (limit(included=20, stop=None, beyond="bill", on_outage="open"),),
    (limit(included=20, stop=40, beyond="bill"),),
    (limit(included=700, stop=None, beyond="bill", on_outage="open"),),  # near at 560
    (limit(included=700, stop=700),),
    (limit(included=20, stop=None, beyond="deny", grace_s=600, on_outage="open"),),
    (limit(included=15, stop=15, period="minute"),),
    (limit(shadow=True, included=10, stop=10),),
    (HARD, limit(name="others", metric="other", included=8, stop=8, period="hour")),
    (HARD, limit(name="users", scope="user", included=30, stop=30)),
]
ASK = st.tuples(st.just("ask"), st.integers(0, 3), st.sampled_from([b"", b"", b"a", b"b"]), st.integers(1, 30))
# What everybody used: nothing, or nearly as much as changes an answer.
SPENT = st.sampled_from([0, 0, 3, 14, 17, 70, 79, 545, 556, 557, 680, 695])
SYNC = st.tuples(st.just("sync"), st.integers(0, 60), SPENT, st.booleans())
WAIT = st.tuples(st.just("wait"), st.sampled_from([1, 99, 900, 900, 9_999, 61_000, 3_600_000]), st.just(0), st.just(0))
PLAN = st.tuples(
    st.just("plan"), st.integers(0, len(LIMITS) - 1), st.sampled_from(["active", "past_due", "unpaid"]), st.just(0)
)
STEP = st.sampled_from([ASK] * 8 + [SYNC] * 4 + [WAIT] * 2 + [PLAN]).flatmap(lambda step: step)


class World:
    """One worker with one tenant, without Redis; everything from outside is a step."""

    def __init__(self, *, fast: bool) -> None:
        self.fast = fast
        self.mono_ms, self.wall = 1_000_000, NOON_S * 1_000
        self.requested = 0
        self.fast_ones = 0
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
        """Redis answers at once; each lease that is asked for gets at most ``units``."""
        message, sent = self.exchange.compose(self.mono_ms)
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
        reply = SyncReply("g1", True, 0, 1, accepted, parts, self.wall // 3_600_000)
        self.exchange.hour = self.wall // 3_600_000
        self.exchange.apply(message, sent, reply, self.mono_ms, self.mono_ms)

    def seen(self) -> Any:
        account = self.directory.accounts["acme"]
        limits = {
            state.id: (
                state.used,
                state.own,
                state.left,
                bool(state.over_ms),
                state.lease.renewing,
                state.lease.need,
                state.lease.outage_used,
            )
            for state in account.limits.values()
        }
        limits = {name: told for name, told in limits.items() if any(told)}  # one that was only looked at is none
        windows = {window.key: window.value for window in account.windows.values()}
        dirty = {window.key for window in account.windows.values() if window.dirty}
        return limits, windows, dirty, account.touched, bool(self.requested)


class Stub:
    """The part of the store that decisions from memory ask for."""

    def __init__(self, world: World) -> None:
        self.keys = self

    def shard_of(self, tenant: str) -> int:
        return 0

    def reachable(self, shard: int) -> bool:
        return True


def told(decision: Decision) -> Any:
    """What a client is told; of several limits the fast path may show another one for a moment, as it says."""
    one = decision.limit
    return decision.allow, decision.reason, decision.quota_status, one and (one.name, one.remaining, one.reset_s)


def alike(one: Any, other: Any, limits: int) -> bool:
    if one is None or other is None or limits == 1:
        return bool(one == other)
    return bool(one[:3] == other[:3])


@given(st.integers(0, len(LIMITS) - 1), st.lists(STEP, min_size=5, max_size=50))
@settings(max_examples=250)
def test_the_fast_path_decides_and_counts_as_the_enforcer_does(
    first: int, steps: list[tuple[Any, Any, Any, Any]]
) -> None:
    fast, slow = worlds = World(fast=True), World(fast=False)
    limits = LIMITS[first]
    for world in worlds:
        world.adopt(plan(*limits))
        for _ in range(4):
            world.ask(0, b"")
            world.ask(2, b"")
            world.sync(60, 0, called=False)
    for what, one, two, three in steps:
        for repeat in range(three if what == "ask" else 1):
            answers = []
            for world in worlds:
                if what == "ask":
                    answers.append(world.ask(one, two if not repeat else b""))
                elif what == "sync":
                    world.sync(one, two, called=bool(three))
                    world.requested = 0
                elif what == "wait":
                    world.mono_ms += one
                    world.wall += one
                else:
                    limits = LIMITS[one]
                    world.adopt(plan(*limits, status=two, status_until_s=NOON_S + 1_000))
            if answers:
                assert alike(answers[0], answers[1], len(limits)), (what, answers)
            assert fast.seen() == slow.seen(), (what, one, two)
    event(f"allowed on the fast path: {min(fast.fast_ones // 20 * 20, 100)} or more")


PAID = limit(included=6_400, stop=None, beyond="bill", on_outage="open")
CAPPED_LATER = limit(included=640, stop=6_400, beyond="bill")
CAPPED = limit(included=6_400, stop=6_400)
INCLUDED = {PAID: 6_400, CAPPED_LATER: 640, CAPPED: 6_400}
# What was used before, by how far it is from where answers change: 80 % of what is included, and all of it.
BEFORE = (*range(-12, 3), -21, -40)


def used(world: World, rule: LimitRule, units: int) -> None:
    """Let a worker know a limit of which so much is used."""
    world.adopt(plan(rule))
    for spent in (0, units):
        world.ask(0, b"")
        world.sync(600, spent, called=False)


@pytest.mark.parametrize("rule", [PAID, CAPPED_LATER, CAPPED], ids=["paid", "capped later", "capped"])
@pytest.mark.parametrize("percent", [80, 100])
@pytest.mark.parametrize("before", BEFORE)
def test_the_fast_path_marks_the_very_request_that_reaches_a_boundary(
    rule: LimitRule, percent: int, before: int
) -> None:
    fast, slow = worlds = World(fast=True), World(fast=False)
    for world in worlds:
        used(world, rule, INCLUDED[rule] * percent // 100 + before)
    for number in (0, 0, 1, 0, 0, 1, 1, 0):
        assert fast.ask(number, b"") == slow.ask(number, b"")
        assert fast.seen() == slow.seen()
    assert fast.fast_ones or (rule is CAPPED and percent == 100)


@pytest.mark.parametrize(
    ("units", "marks", "looks"),
    [
        (INCLUDED[PAID] * 80 // 100 - 3, ["ok", "ok", "near", "near", "near"], [1, 0, 1, 0, 0]),
        (INCLUDED[PAID] - 3, ["near", "near", "near", "over", "over"], [1, 1, 1, 1, 0]),
    ],
)
def test_a_close_look_is_taken_where_a_mark_may_change(units: int, marks: list[str], looks: list[int]) -> None:
    """The first request after a report is looked at, too; so is each of the last units, which are less than a part."""
    world = World(fast=True)
    used(world, PAID, units)
    taken: list[int] = []
    look = FastPath._look

    def counted(*about: Any) -> bool:
        taken[-1] += 1
        return look(*about)

    found, begun = [], []
    [state] = world.directory.accounts["acme"].limits.values()
    with mock.patch.object(FastPath, "_look", counted):
        for _ in marks:
            taken.append(0)
            found.append(world.ask(0, b"")[2])
            begun.append(bool(state.over_ms))
    assert (found, taken) == (marks, looks)
    assert begun == [mark == "over" for mark in marks]
