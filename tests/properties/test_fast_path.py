"""The fast path allows, counts, marks and asks for leases as the enforcer does that never takes it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from sidecar.catalogue.snapshot import LimitRule
from sidecar.enforcement.fast_path import FastPath
from tests.properties.models.deciding import World
from tests.unit.tenants import HARD, NOON_S, SOFT, limit, plan

WIDE = limit(included=70_000, stop=70_000)  # so that a part of it is more than a few units
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
    (limit(WIDE, on_outage="open"),),
    (limit(WIDE, on_outage="bounded", outage_units=25),),
    (limit(on_outage="open"),),
    (limit(included=20, stop=4_000, beyond="bill", on_outage="open"),),
    (limit(WIDE, on_outage="open"), limit(WIDE, name="burst", period="minute", on_outage="bounded", outage_units=90)),
    (limit(WIDE), limit(WIDE, name="burst", period="minute"), limit(SOFT, name="soft")),
    (limit(WIDE, name="users", scope="user", on_outage="bounded", outage_units=40), limit(SOFT, name="soft")),
    (limit(WIDE, on_outage="open"), limit(name="others", metric="other", on_outage="bounded", outage_units=3)),
]
WITHOUT_REDIS = [number for number, rules in enumerate(LIMITS) if any(rule.on_outage != "closed" for rule in rules)]
# The limits at first, and whether Redis is away.
FIRST = st.tuples(st.integers(0, len(LIMITS) - 1), st.just(False)) | st.tuples(
    st.sampled_from(WITHOUT_REDIS), st.just(True)
)
ASK = st.tuples(st.just("ask"), st.integers(0, 3), st.sampled_from([b"", b"", b"a", b"b"]), st.integers(1, 30))
# What everybody used: nothing, or nearly as much as changes an answer.
SPENT = st.sampled_from([0, 0, 3, 14, 17, 70, 79, 545, 556, 557, 680, 695])
SYNC = st.tuples(st.just("sync"), st.integers(0, 60), SPENT, st.booleans())
WAIT = st.tuples(st.just("wait"), st.sampled_from([1, 99, 900, 900, 9_999, 61_000, 3_600_000]), st.just(0), st.just(0))
PLAN = st.tuples(
    st.just("plan"), st.integers(0, len(LIMITS) - 1), st.sampled_from(["active", "past_due", "unpaid"]), st.just(0)
)
# Redis is away or not, a report is lost or not, and what it lost is restored or not yet.
STORE = st.tuples(st.just("store"), st.booleans(), st.booleans(), st.sampled_from([True, True, False]))
STEP = st.sampled_from([ASK] * 8 + [SYNC] * 4 + [WAIT] * 2 + [STORE] * 2 + [PLAN]).flatmap(lambda step: step)

MINUTES = [number for number, rules in enumerate(LIMITS) if any(rule.period == "minute" for rule in rules)]
SOON = st.tuples(st.just("wait"), st.sampled_from([900, 2_000, 17_000, 61_000]), st.just(0), st.just(0))
ROOMY = st.tuples(st.just("sync"), st.just(60), st.sampled_from([0, 0, 3]), st.just(False))
MINUTE_STEP = st.sampled_from([ASK] * 4 + [ROOMY] * 3 + [SOON] * 3 + [PLAN, STORE]).flatmap(lambda step: step)


def alike(one: Any, other: Any, limits: int) -> bool:
    if one is None or other is None or limits == 1:
        return bool(one == other)
    return bool(one[:3] == other[:3])


def take(world: World, what: str, one: Any, two: Any, three: Any) -> None:
    """A step that is no request."""
    if what == "sync":
        world.sync(one, two, called=three)
        world.requested = 0
    elif what == "wait":
        world.wait(one)
    elif what == "store":
        world.reachable, world.granting = one, three
        if two:
            world.lose()
    else:
        world.adopt(plan(*LIMITS[one], status=two, status_until_s=NOON_S + 1_000))


# A repeat with the number of somebody else's request, who has other limits: it begins none.
REPEATED: list[tuple[Any, Any, Any, Any]] = [
    ("ask", 0, b"a", 1),
    ("plan", 10, "active", 0),
    ("ask", 2, b"a", 1),
    ("store", False, True, True),
    ("ask", 2, b"", 1),
]


@given(FIRST, st.lists(STEP, min_size=5, max_size=50))
@example((0, False), REPEATED)
@settings(max_examples=500)
def test_the_fast_path_decides_and_counts_as_the_enforcer_does(
    first: tuple[int, bool], steps: list[tuple[Any, Any, Any, Any]]
) -> None:
    agree(first, steps)


@given(st.tuples(st.sampled_from(MINUTES), st.just(False)), st.lists(MINUTE_STEP, min_size=5, max_size=50))
@settings(max_examples=200)
def test_it_does_so_from_minute_to_minute(first: tuple[int, bool], steps: list[tuple[Any, Any, Any, Any]]) -> None:
    agree(first, steps)


def agree(first: tuple[int, bool], steps: list[tuple[Any, Any, Any, Any]]) -> None:
    """Take steps with the fast path and without; all that can be seen has to be the same after each."""
    fast, slow = worlds = World(fast=True), World(fast=False)
    limits, away = LIMITS[first[0]], first[1]
    for world in worlds:
        world.adopt(plan(*limits))
        for _ in range(4):
            world.ask(0, b"")
            world.ask(2, b"")
            world.sync(2 if away else 60, 0, called=False)
        if away:
            world.reachable = False
            world.lose()
    for what, one, two, three in steps:
        for repeat in range(three if what == "ask" else 1):
            if what == "ask":
                answers = [world.ask(one, two if not repeat else b"") for world in worlds]
                assert alike(answers[0], answers[1], len(limits)), answers
            else:
                for world in worlds:
                    take(world, what, one, two, three)
                limits = LIMITS[one] if what == "plan" else limits
            assert fast.seen() == slow.seen(), (what, one, two)
    event(f"allowed on the fast path: {min(fast.fast_ones // 20 * 20, 100)} or more")
    event(f"by an outage policy: {min(fast.degraded_ones // 20 * 20, 100)} or more")


def test_a_trial_ends_also_where_a_clock_was_ahead_and_stepped_back() -> None:
    world = World(fast=True)
    world.adopt(plan(limit(WIDE), status="trialing", status_until_s=NOON_S + 1_800))
    for at_s, reason in ((2_400, "payment_required"), (1_200, "allowed"), (1_900, "payment_required")):
        world.wall = (NOON_S + at_s) * 1_000
        answers = []
        for _ in range(4):
            world.wait(1)
            answers.append(world.ask(0, b""))
            world.sync(60, 0, called=False)
        assert answers[-1][1] == reason
    assert world.fast_ones


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
