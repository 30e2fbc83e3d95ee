"""Virtual time: an event loop that runs the program's own coroutines, and the processes whose steps it may drop.

Guarantees: the same steps in the same order for the same seed; time stands still while something can run. A killed
            process takes no further step, wherever it was; a paused one takes its steps after it was resumed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from heapq import heappop, heappush
from itertools import repeat
from types import MethodType
from typing import Any
from unittest import mock

STEPS_MAX = 2_000_000


class Killed(BaseException):
    """Unwinds the step in which a process was killed."""


class Process:
    """One life of one program: everything it starts carries its mark."""

    __slots__ = ("alive", "context", "held", "name", "paused")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.held: list[Entry] = []
        self.context = Context()
        self.context.run(_PROCESS.set, self)

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call something inside the process: what it schedules belongs to it."""
        return self.context.run(call, *arguments)

    def spawn(self, loop: VirtualLoop, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return Task(work, loop=loop, name="task", context=self.context.copy())


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


def current() -> Process | None:
    """The process whose step is being taken."""
    return _PROCESS.get()


# [when in us, number, what to call with which arguments, context]: no two are equal in the first two, so they compare
# without a step of Python's. What is cancelled has None to call.
Entry = list[Any]


class Step:
    """Something to be called, for whoever may change its mind; stands in for asyncio's handles."""

    __slots__ = ("_entry",)

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def cancel(self) -> None:
        self._entry[2] = None

    def cancelled(self) -> bool:
        return self._entry[2] is None

    def when(self) -> float:
        return float(self._entry[0] / 1e6)


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
        self._wakes_us: int | None = None  # when the task that is about to give up its turn goes on
        self._ready: deque[Any] = deque()  # entries, some of them as tuples
        self._timers: list[Entry] = []
        self._scheduled = 0

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def leap(self, ms: int) -> None:
        """Let time pass at once for every clock."""
        self._leapt_ms += ms
        self.elapsed_ms += ms

    def run_until(self, ms: int) -> None:
        """Run everything that is due up to an instant, which then is the present."""
        until_us = ms * 1000
        ready, timers, steps = self._ready, self._timers, self.steps
        asyncio._set_running_loop(self)
        try:
            while True:
                if ready:
                    _, _, call, context = entry = ready.popleft()
                elif timers and timers[0][0] <= until_us:
                    when_us, _, call, context = entry = heappop(timers)
                    if when_us > self.now_us and call is not None:
                        self.now_us = when_us
                        self.elapsed_ms = when_us // 1000 + self._leapt_ms
                else:
                    break
                if call is None:
                    continue
                process = context.get(_PROCESS)
                if process is not None and (process.paused or not process.alive):
                    if process.alive:
                        process.held.append(entry)
                    continue
                steps += 1
                context.run(*call)
                if steps > STEPS_MAX:
                    raise RuntimeError("the simulation does not come to an end")
        finally:
            self.steps = steps
            asyncio._set_running_loop(None)
        if until_us > self.now_us:
            self.now_us = until_us
            self.elapsed_ms = ms + self._leapt_ms

    def resume(self, process: Process) -> None:
        """Let a paused process take the steps that came due meanwhile."""
        process.paused = False
        self._ready.extend(process.held)
        process.held.clear()

    # Entries are put on the heap at each place anew: a call more would be two thousand in a run.

    def at(self, ms: int, *call: Any) -> Entry:
        """Call something of the world at an instant; it belongs to no process."""
        self._scheduled = number = self._scheduled + 1
        entry = [ms * 1000, number, call, _WORLD]
        heappush(self._timers, entry)
        return entry

    def after_us(self, us: int, *call: Any, of: Process | None = None) -> None:
        """Call something a while from now, of a process or of the world."""
        self._scheduled = number = self._scheduled + 1
        heappush(self._timers, [self.now_us + us, number, call, of.context if of is not None else _WORLD])

    def pause_us(self, us: int) -> _Turn:
        """What a task awaits at once to go on a while from now: the one step of a sleep."""
        self._wakes_us = self.now_us + us
        return _TURN

    def wake(self, task: asyncio.Task[Any]) -> None:
        """Let a task that sleeps go on now."""
        for entry in self._timers:
            call = entry[2]
            if call is not None and getattr(call[0], "__self__", None) is task and not isinstance(call[0], MethodType):
                self._ready.append((0, 0, call, entry[3]))  # its step; a method would be what somebody wants of it
                entry[2] = None

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self.now_us / 1e6

    def call_soon(self, *call: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        if context is not None:  # of a future or a task, which never change their minds
            wakes_us = self._wakes_us
            if wakes_us is None:
                self._ready.append((0, 0, call, context))
            else:
                self._wakes_us = None
                self._scheduled = number = self._scheduled + 1
                heappush(self._timers, [wakes_us, number, call, context])
            return None
        entry = [0, 0, call, copy_context()]
        self._ready.append(entry)
        return Step(entry)

    def call_at(self, when: float, *call: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        self._scheduled = number = self._scheduled + 1
        entry = [max(self.now_us, round(when * 1e6)), number, call, copy_context() if context is None else context]
        heappush(self._timers, entry)
        return Step(entry)

    def call_later(self, delay: float, *call: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        return self.call_at(self.now_us / 1e6 + delay, *call, context=context)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        return Task(coro, loop=self, name=name or "task", context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        # A task of a killed process is destroyed while it waits, which is the point.
        if not isinstance(context.get("exception"), Killed | None):
            self.failures.append(context)

    get_debug = staticmethod(bool)  # False, asked of every future and task

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False


_WORLD = Context()


@contextmanager
def virtual(loop: VirtualLoop) -> Iterator[None]:
    """Let asyncio take the shorter ways that a virtual loop allows."""
    running = repeat(loop).__next__  # asyncio's own asks the kernel for the process each time: it may have forked
    with (
        mock.patch.object(asyncio, "get_running_loop", running),
        mock.patch.object(asyncio.events, "get_running_loop", running),
        mock.patch.object(asyncio.events, "_get_running_loop", running),
        mock.patch.object(asyncio, "sleep", sleep),
        # Nobody asks for all tasks, and each would be put in and taken out.
        mock.patch.object(asyncio.tasks._all_tasks, "add", id),  # type: ignore[attr-defined]
    ):
        yield


async def sleep(delay: float, result: Any = None) -> Any:
    """What stands in for ``asyncio.sleep``: the same, without a future."""
    if delay > 0:
        loop: Any = asyncio.get_running_loop()
        now_us = loop.now_us
        loop._wakes_us = max(now_us, round((now_us / 1e6 + delay) * 1e6))
    await _TURN
    return result


class Task(asyncio.Task[Any]):
    """A task that may be cancelled while it sleeps in the loop's own way."""

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            loop: Any = self.get_loop()
            loop.wake(self)
        return cancelled


class _Turn:
    """Lets everything else have its turn once."""

    __slots__ = ()

    def __await__(self) -> Generator[None]:
        return iter((None,))  # type: ignore[return-value] # it need not take anything, and takes no frame


_TURN = _Turn()
