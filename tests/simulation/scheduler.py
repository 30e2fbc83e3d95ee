"""Virtual time: an event loop that runs the program's own coroutines, and the processes whose steps it may drop.

Guarantees: the same steps in the same order for the same seed; time stands still while something can run. A killed
            process takes no further step, wherever it was; a paused one takes its steps after it was resumed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from functools import partial
from heapq import heappop, heappush
from types import coroutine
from typing import Any

STEPS_MAX = 2_000_000


class Process:
    """One life of one program: everything it starts carries its mark."""

    __slots__ = ("alive", "context", "held", "name", "paused")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.held: list[Step] = []
        self.context = Context()
        self.context.run(_PROCESS.set, self)

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call something inside the process: what it schedules belongs to it."""
        return self.context.run(call, *arguments)

    def spawn(self, loop: VirtualLoop, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.Task(work, loop=loop, context=self.context.copy())


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


def current() -> Process | None:
    """The process whose step is being taken."""
    return _PROCESS.get()


class Step(list[Any]):
    """Something to be called; stands in for asyncio's handles, of which only ``cancel`` is used.

    It is [when in us, number, call, arguments, context]: a list is made and compared without a step of Python's.
    """

    __slots__ = ()

    def cancel(self) -> None:
        self[2] = None

    def cancelled(self) -> bool:
        return self[2] is None

    def when(self) -> float:
        return float(self[0] / 1e6)


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs steps in the order in which they are due; knows nothing of sockets or threads.

    ``elapsed_ms`` is time as every clock sees it: a leap is a time in which all machines slept.
    """

    def __init__(self) -> None:
        self.now_us = 0
        self.elapsed_ms = 0
        self.steps = 0
        self.failures: list[dict[str, Any]] = []
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign]
        self._leapt_ms = 0
        self._ready: deque[Step] = deque()
        self._timers: list[Step] = []
        self._scheduled = 0

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def leap(self, ms: int) -> None:
        """Let time pass at once for every clock."""
        self._leapt_ms += ms
        self.elapsed_ms += ms

    def run_until(self, ms: int) -> None:  # noqa: PLR0912 - the innermost loop of every run
        """Run everything that is due up to an instant, which then is the present."""
        until_us = ms * 1000
        ready, timers = self._ready, self._timers
        asyncio._set_running_loop(self)
        try:
            while True:
                if ready:
                    _, _, call, arguments, context = step = ready.popleft()
                    if call is None:
                        continue
                else:
                    if not timers or timers[0][0] > until_us:
                        break
                    when_us, _, call, arguments, context = step = heappop(timers)
                    if call is None:
                        continue
                    if when_us > self.now_us:
                        self.now_us = when_us
                        self.elapsed_ms = when_us // 1000 + self._leapt_ms
                process = context.get(_PROCESS)
                if process is not None:
                    if not process.alive:
                        continue
                    if process.paused:
                        process.held.append(step)
                        continue
                self.steps += 1
                context.run(call, *arguments)
                if self.steps > STEPS_MAX:
                    raise RuntimeError("the simulation does not come to an end")
        finally:
            asyncio._set_running_loop(None)
        if until_us > self.now_us:
            self.now_us = until_us
            self.elapsed_ms = ms + self._leapt_ms

    def resume(self, process: Process) -> None:
        """Let a paused process take the steps that came due meanwhile."""
        process.paused = False
        self._ready.extend(process.held)
        process.held.clear()

    def at(self, ms: int, call: Callable[..., Any], *arguments: Any) -> Step:
        """Call something of the world at an instant; it belongs to no process."""
        return self._schedule(ms * 1000, call, arguments, _WORLD)

    def after_us(self, us: int, call: Callable[..., Any], *arguments: Any, of: Process | None = None) -> Step:
        """Call something a while from now, of a process or of the world."""
        return self._schedule(self.now_us + us, call, arguments, of.context if of is not None else _WORLD)

    async def pause_us(self, us: int) -> None:
        """Sleep, and wake even if the sleeper has changed its mind."""
        woken = self.create_future()
        self._schedule(self.now_us + us, _wake, (woken,), copy_context())
        await woken

    def _schedule(self, when_us: int, call: Callable[..., Any], arguments: tuple[Any, ...], context: Context) -> Step:
        self._scheduled += 1
        step = Step((when_us, self._scheduled, call, arguments, context))
        heappush(self._timers, step)
        return step

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self.now_us / 1e6

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        step = Step((0, 0, callback, args, context if context is not None else copy_context()))
        self._ready.append(step)
        return step

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        when_us, now_us = round(when * 1e6), self.now_us
        return self._schedule(max(now_us, when_us), callback, args, copy_context() if context is None else context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        when_us, now_us = round((self.now_us / 1e6 + delay) * 1e6), self.now_us
        return self._schedule(max(now_us, when_us), callback, args, copy_context() if context is None else context)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name or "task", context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        # A task of a killed process is destroyed while it waits, which is the point.
        if context.get("exception") is not None:
            self.failures.append(context)

    get_debug = staticmethod(bool)  # False, asked of every future and task

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False


_WORLD = Context()


async def sleep(delay: float, result: Any = None) -> Any:
    """What stands in for ``asyncio.sleep``: the same, in fewer steps of Python."""
    loop: Any = asyncio.get_running_loop()
    if delay <= 0:
        await _yielded()
        return result
    woken: asyncio.Future[None] = loop.create_future()
    handle = loop.call_later(delay, _wake, woken)
    try:
        await woken
    finally:
        handle[2] = None
    return result


@coroutine
def _yielded() -> Generator[None]:
    yield


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
