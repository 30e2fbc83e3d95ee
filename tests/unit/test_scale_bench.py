"""bench.scale ends instead of standing still."""

from __future__ import annotations

import asyncio

import pytest

from bench.scale.fleet import BEGAN_MS, SteppedClock
from bench.scale.watch import StoodStill, watched
from sidecar.store.breaker import Breaker


async def stands_still(*, at_the_end_too: bool = False) -> None:
    async with watched(patience_s=0.01) as watch:
        watch.doing("the third step")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if at_the_end_too:
                watch.doing("the end")
                await asyncio.get_running_loop().create_future()


async def test_a_run_that_stands_still_fails_and_says_what_it_waits_for() -> None:
    with pytest.raises(StoodStill, match=r"(?s)at the third step\n.*waiting in stands_still line"):
        await stands_still()


async def test_an_end_that_stands_still_too_is_ended() -> None:
    with pytest.raises(StoodStill, match="at the third step"):
        await stands_still(at_the_end_too=True)


async def test_cancelled_from_outside_it_is_no_standstill() -> None:
    async def run() -> None:
        async with watched():
            began.set()
            await asyncio.get_running_loop().create_future()

    began = asyncio.Event()
    task = asyncio.create_task(run())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_clock_of_a_fleet_runs_where_real_time_is_waited_for() -> None:
    clock = SteppedClock()
    breaker = Breaker(failures_max=1, probe_ms=1)
    breaker.failed(clock.monotonic_ms())
    assert not breaker.would_allow(clock.monotonic_ms())
    with clock.running():
        while not breaker.would_allow(clock.monotonic_ms()):
            pass
    stood = clock.monotonic_ms()
    assert BEGAN_MS < stood == clock.monotonic_ms() == clock.moved_ms
