"""A time limit for a call to Redis that knows a late event loop from a late answer.

Timers run before sockets are read. Where this process was kept from running (a flood of requests, a throttled CPU), the
answer may lie in the socket when the time is up: it is read before anything is said against Redis.

Guarantees: no longer than the limit, as long as the loop turns in time; then up to GRACE_S more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

LATE_S = 0.005
GRACE_S = 0.02


class Patience:
    """Like ``asyncio.timeout``, entered without an await: TimeoutError when it takes longer than ``limit_s``."""

    __slots__ = ("_cancelling", "_due_s", "_expired", "_handle", "_limit_s", "_loop", "_task")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._expired = False

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._due_s = self._loop.time() + self._limit_s
        self._handle = self._loop.call_at(self._due_s, self._end, True)  # noqa: FBT003 - call_at takes no keywords
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self, first: bool) -> None:  # noqa: FBT001 - see above
        if first and self._loop.time() - self._due_s > LATE_S:
            self._handle = self._loop.call_later(GRACE_S, self._end, False)  # noqa: FBT003 - see above
            return
        self._expired = True
        self._task.cancel()
