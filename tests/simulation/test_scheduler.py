"""Virtual time: who sleeps wakes when it is due, or when it is cancelled, and in the order in which all lay down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.simulation.scheduler import Process, VirtualLoop, virtual


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()  # type: ignore[abstract]
    with virtual(made):
        yield made


def told(loop: VirtualLoop, into: list[tuple[str, int]], name: str, work: Callable[[], Awaitable[object]]) -> Process:
    """A process that does something and then tells when it was done, or cancelled."""
    process = Process(name)

    async def run() -> None:
        try:
            await work()
        except asyncio.CancelledError:
            into.append((f"{name} cancelled", loop.now_ms))
            raise
        into.append((name, loop.now_ms))

    process.run(loop.create_task, run())
    return process


def test_sleepers_wake_when_they_are_due_in_the_order_in_which_they_lay_down(loop: VirtualLoop) -> None:
    woken: list[tuple[str, int]] = []
    for name, delay_s in (("a", 0.02), ("b", 0.01), ("c", 0.02), ("d", 0)):
        told(loop, woken, name, lambda delay_s=delay_s: asyncio.sleep(delay_s))  # type: ignore[misc]
    told(loop, woken, "e", lambda: loop.pause_us(20_000))
    loop.run_until(15)
    assert woken == [("d", 0), ("b", 10)]
    loop.run_until(30)
    assert woken[2:] == [("a", 20), ("c", 20), ("e", 20)]


def test_a_sleeper_that_is_cancelled_wakes_at_once_and_never_again(loop: VirtualLoop) -> None:
    woken: list[tuple[str, int]] = []

    async def bounded() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)

    async def watched() -> None:
        with pytest.raises(TimeoutError):
            await bounded()

    told(loop, woken, "watched", watched)
    loop.run_until(10_000)
    assert woken == [("watched", 10)]
    assert not loop.failures


def test_what_else_is_planned_for_a_task_stays_when_it_is_cancelled(loop: VirtualLoop) -> None:
    woken: list[tuple[str, int]] = []

    async def twice() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop.call_later(0.01, task.cancel)
        loop.call_later(0.02, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(5)
        await asyncio.sleep(5)

    told(loop, woken, "twice", twice)
    loop.run_until(10_000)
    assert woken == [("twice cancelled", 20)]


def test_a_paused_process_goes_on_with_what_came_due_meanwhile(loop: VirtualLoop) -> None:
    woken: list[tuple[str, int]] = []
    process = told(loop, woken, "a", lambda: asyncio.sleep(0.01))
    loop.run_until(1)
    process.paused = True
    loop.run_until(50)
    assert not woken
    loop.resume(process)
    loop.run_until(60)
    assert woken == [("a", 50)]


def test_a_killed_process_takes_no_further_step(loop: VirtualLoop) -> None:
    woken: list[tuple[str, int]] = []
    process = told(loop, woken, "a", lambda: asyncio.sleep(0.01))
    loop.run_until(1)
    process.alive = False
    loop.run_until(50)
    assert not woken
