"""Leases of several writers whose messages are lost, late, repeated and reordered: the invariants L1, L2 and L3."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.properties.models.leasing import TERMS, Leasing, Writer

NUMBER = st.integers(0, 2**16)
# What happens, and how often: a few accidents among many requests and calls.
HAPPENINGS = (
    *["request"] * 3, *["burst"] * 3, *["busy"] * 6, *["send"] * 2, *["deliver"] * 3, *["answer"] * 3,
    *["exchange"] * 3, *["step"] * 3, *["flush"] * 2, "give_up", "repeat", "lose", "pause", "outage", "kill",
    "change_plan", "wipe",
)  # fmt: skip
# What Redis loses of a second or a minute nobody has, and nobody's journal: they are not among the promises.
SMALL_HAPPENINGS = (
    *["request"] * 3, *["burst"] * 3, *["busy"] * 4, *["turn"] * 8, *["send"] * 2, *["deliver"] * 2, *["answer"] * 2,
    *["exchange"] * 3, *["step"] * 3, "flush", "give_up", "repeat", "lose", "pause", "outage", "change_plan",
    "other cap",
)  # fmt: skip
SMALL_STEPS = st.lists(st.tuples(st.sampled_from(SMALL_HAPPENINGS), NUMBER), min_size=40, max_size=120)
STEPS = st.lists(st.tuples(st.sampled_from(HAPPENINGS), NUMBER), min_size=40, max_size=120)
CAP = st.one_of(st.integers(1, 30), st.integers(1, 200))


def act(world: Leasing, name: str, number: int) -> None:
    """Let one thing happen; ``number`` says to whom and how much."""
    writer = world.writers[number % len(world.writers)]
    actions: dict[str, Callable[[], object]] = {
        "request": lambda: world.request(writer, 1 + number // 7 % 9),
        "burst": lambda: burst(world, writer, number),
        "busy": lambda: busy_exchange(world, writer, number),
        "send": lambda: world.send(writer),
        "exchange": lambda: world.exchange(writer),
        "give_up": lambda: world.give_up(writer),
        "step": lambda: world.step(number % 900),
        "pause": lambda: world.step(number % 15_000),
        "outage": lambda: outage(world, number % 150),
        "flush": world.flush,
        "kill": lambda: world.kill(number % len(world.writers)),
        "change_plan": lambda: world.change_plan(world.terms.limits[0].stop or 0),
        "wipe": world.wipe,
        "turn": lambda: turn(world, writer, number),
        "other cap": lambda: world.change_plan(1 + number % 60),
    }
    if name in actions:
        actions[name]()
    elif name == "answer" and world.replies:
        world.answer(number % len(world.replies))
    elif name in {"deliver", "repeat"} and world.calls:
        world.deliver(number % len(world.calls), again=name == "repeat")
    elif name == "lose" and world.calls:
        world.calls.pop(number % len(world.calls))


def burst(world: Leasing, writer: Writer, number: int) -> None:
    for _ in range(number % 40):
        world.request(writer, 1)


def busy_exchange(world: Leasing, writer: Writer, number: int) -> None:
    """A call during which requests go on; its reply may be lost."""
    world.send(writer)
    burst(world, writer, number)
    world.deliver(len(world.calls) - 1)
    burst(world, writer, number // 40)
    if number % 5:
        world.answer(len(world.replies) - 1)
    burst(world, writer, number // 80)


def turn(world: Leasing, writer: Writer, number: int) -> None:
    """The end of a minute, with requests and calls shortly before it, and all of the next one used up."""
    world.step((59_200 - world.wall_ms) % 60_000)
    for one in (writer, *world.writers[: number % 3]):
        burst(world, one, 1 + number % 39)
        busy_exchange(world, one, number // 3)
    world.step(400 + number % 800)
    for _ in range(1 + number % 4):
        for one in world.writers:
            burst(world, one, 39)
            world.exchange(one)
            burst(world, one, 39)


def outage(world: Leasing, seconds: int) -> None:
    """Some writers do not reach Redis for a while; the flusher does."""
    for _ in range(seconds):
        world.step(1000)
        world.flush()
        world.exchange(world.writers[-1])
        for writer in world.writers[:-1]:
            world.request(writer, 1)


def use_up(world: Leasing, writer: Writer) -> None:
    """Ask for one unit after the other until Redis has none left."""
    denied = 0
    while denied < 3:
        if world.request(writer, 1):
            denied = 0
        else:
            world.exchange(writer)
            denied += 1


@example(steps=[("request", 0), ("change_plan", 0)], cap=10, period="day")  # a lease at rest goes back, too
@given(steps=STEPS, cap=CAP, period=st.sampled_from(("day", "lifetime")))
@settings(max_examples=120)
def test_the_cap_holds_and_can_be_used_to_the_last_unit(steps: list[tuple[str, int]], cap: int, period: str) -> None:
    world = Leasing(3, cap, period)
    for name, number in steps:
        act(world, name, number)
        assert world.admitted <= world.admissible  # L1
    world.quiet()
    kept = world.kept()
    assert (kept["held"], kept["n"]) == (0, 0)  # L2
    assert kept["spent"] == world.admitted
    use_up(world, world.writers[0])
    assert world.admitted >= cap  # L3
    assert world.admitted <= world.admissible


@given(steps=SMALL_STEPS, cap=CAP, period=st.sampled_from(("second", "minute")), changing=st.booleans())
@settings(max_examples=120)
def test_the_cap_of_every_minute_holds_and_can_be_used_to_the_last_unit(
    steps: list[tuple[str, int]], cap: int, period: str, *, changing: bool
) -> None:
    """Leases are asked for before their second or minute begins."""
    world = Leasing(3, cap, period)
    caps = {cap}
    for name, number in steps:
        if changing or name != "other cap":
            act(world, name, number)
        caps.add(world.terms.limits[0].stop or 0)
        excused = sum(world.excused.values())
        assert max(world.admitted_from.values(), default=0) <= max(caps) + excused  # L1
    cap = world.terms.limits[0].stop or 0
    world.quiet()
    kept = world.kept()
    assert (kept["held"], kept["n"]) == (0, 0)  # L2
    use_up(world, world.writers[0])
    assert world.admitted_from[world.start_s] == cap  # L3


@given(steps=STEPS, caps=st.lists(CAP, min_size=2, max_size=4))
@settings(max_examples=60)
def test_a_lower_cap_stops_everybody_who_has_learned_of_it(steps: list[tuple[str, int]], caps: list[int]) -> None:
    world = Leasing(2, caps[0])
    for index, cap in enumerate(caps):
        world.change_plan(cap)
        for writer in world.writers:
            writer.exchange.touch(writer.account)  # what is at rest is not reported, but the change is announced
            world.exchange(writer)
        before = world.admitted
        for name, number in steps[index :: len(caps)]:
            act(world, name, number)
            assert world.admitted <= max(before, world.admissible)
    world.quiet()
    assert world.kept() == {"spent": world.admitted, "held": 0, "n": 0}


@given(units=st.lists(st.integers(1, 9), min_size=1, max_size=60), writers=st.integers(1, 5), cap=CAP)
@example(units=[8, 1, 8, 1, 4], writers=2, cap=16)  # the second 8 waits for longer than it can fit
def test_a_need_that_fits_is_always_met(units: list[int], writers: int, cap: int) -> None:
    """However the room is shared, a request that fits is not denied while others hold nothing but what they use."""
    world = Leasing(writers, cap)
    for index, cost in enumerate(units):
        writer = world.writers[index % writers]
        if not world.request(writer, cost):
            world.exchange(writer)
            kept = world.kept()
            # A need is met whenever it fits beside what is held, the writer's own lease included.
            assert world.request(writer, cost) or cap - kept["spent"] - kept["held"] < cost
        assert world.admitted <= cap


@pytest.mark.parametrize("late_ms", [9_999, 10_000, 25_000])
def test_a_late_reply_is_used_only_while_its_lease_is_safe(late_ms: int) -> None:
    world = Leasing(1, 100)
    [writer] = world.writers
    world.exchange(writer)
    world.request(writer, 1)
    world.send(writer)
    world.deliver(0)
    world.step(late_ms)
    world.answer(0)
    assert world.request(writer, 1) is False or late_ms < 10_000


def test_a_superseded_reply_is_not_used() -> None:
    world = Leasing(1, 100)
    [writer] = world.writers
    world.exchange(writer)
    world.request(writer, 1)
    world.send(writer)
    world.deliver(0)
    world.send(writer)
    world.answer(0)
    assert writer.exchange.replies_unused == 1
    assert not world.request(writer, 1)


def test_a_lease_that_ran_out_while_a_call_was_in_flight_is_not_spent() -> None:
    world = Leasing(2, 20)
    first, second = world.writers
    world.request(first, 1)
    world.exchange(first)
    held = world.kept()["held"]
    assert held > 0
    for _ in range(59):  # first does not reach Redis any more
        world.step(1000)
        world.flush()
        world.exchange(second)
    world.send(first)
    world.step(2000)
    assert not first.exchange.spendable(world.now)
    assert all(state.left == 0 for state in first.account.limits.values())
    use_up(world, second)
    assert world.admitted == 20
    world.wipe()
    world.flush()
    world.calls.clear()
    world.exchange(first)
    world.exchange(first)
    assert not world.request(first, 1)


def test_a_writer_that_cannot_read_the_new_snapshot_does_not_spend_a_lost_lease() -> None:
    """As in a rolling upgrade: syncs are answered, and the snapshot is of a version this writer cannot read."""
    world = Leasing(2, 2000)
    first, second = world.writers
    for _ in range(10):  # a burst, so that the lease is large
        burst(world, first, 39)
        world.exchange(first)
        world.step(100)
    first.reads_snapshots = False
    world.change_plan(2000)
    world.wipe()
    for _ in range(140):
        world.step(500)
        world.request(first, 1)
        world.flush()
        for writer in world.writers:
            world.exchange(writer)
    unsaid = world.unknown(first)  # spent within lease_ttl of the first refusal: the exception to L1 that remains
    assert unsaid <= TERMS.lease_ttl_ms // 500 + 1
    assert not world.request(first, 1)
    use_up(world, second)
    assert world.admitted <= world.admissible + unsaid
