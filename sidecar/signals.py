"""Stopping: the first SIGINT or SIGTERM asks kindly, the second one insists. And ending tasks that run until then."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Coroutine
from types import TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
END_AGAIN_S = 0.5


class Stop:
    """While it is entered, signals are noted instead of ending the process; ``force`` runs at the second one."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._force: Callable[[], None] | None = None

    def insist_with(self, force: Callable[[], None]) -> None:
        """Say what a second signal does."""
        self._force = force

    async def wait(self) -> None:
        await self._asked.wait()

    async def unless(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work unless told to stop first; returns whether it was done."""
        doing, stopping = asyncio.create_task(work), asyncio.create_task(self.wait())
        await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if doing.done():
            doing.result()
            return True
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        return False

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def _note(self) -> None:
        if self._asked.is_set() and self._force is not None:
            self._force()
        self._asked.set()

    def __enter__(self) -> Self:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """End tasks. Asked again while one goes on: a driver may take the first request for a failed connection."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=END_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved: whoever wanted to know has heard of it
