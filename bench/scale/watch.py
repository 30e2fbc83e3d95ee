"""An end for a run that stands still: it fails, and says what it was waiting for and where every task waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

PATIENCE_S = 120.0
LOOKS = 20  # for each time of patience
PLACES_MOST = 10


class StoodStill(Exception):
    """Nothing went on for as long as the watch had patience; the text says at what, and where tasks wait."""


class Watch:
    """Told what is being ``doing`` each time that something went on."""

    def __init__(self, patience_s: float) -> None:
        self.found = ""
        self._patience_s = patience_s
        self._what = "the start"
        self._since_s = asyncio.get_running_loop().time()

    def doing(self, what: str) -> None:
        """Something went on, and next comes ``what``."""
        self._what = what
        self._since_s = asyncio.get_running_loop().time()

    async def look(self, watched: asyncio.Task[Any]) -> None:
        """Cancel a task whenever nothing went on for too long, at its end too."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._patience_s / LOOKS)
            if loop.time() - self._since_s > self._patience_s:
                self.found = self.found or f"nothing went on for {self._patience_s:g} s at {self._what}\n{_waiting()}"
                self._since_s = loop.time()
                watched.cancel()


@asynccontextmanager
async def watched(patience_s: float = PATIENCE_S) -> AsyncIterator[Watch]:
    """Watch what is inside; StoodStill instead of standing still."""
    task = asyncio.current_task()
    assert task is not None
    watch = Watch(patience_s)
    looking = asyncio.create_task(watch.look(task))
    try:
        yield watch
    except asyncio.CancelledError as error:
        if watch.found:
            raise StoodStill(watch.found) from error
        raise
    finally:
        looking.cancel()


def _waiting() -> str:
    """Where tasks wait, the most frequent places first."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    places = Counter(_place(task.get_coro()) for task in others)
    return "\n".join(f"{number:5} waiting in {place}" for place, number in places.most_common(PLACES_MOST))


def _place(coroutine: Any) -> str:
    """The innermost line that a coroutine has come to, and what called it."""
    lines: list[str] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        lines.append(f"{frame.f_code.co_qualname} line {frame.f_lineno}")
        coroutine = coroutine.cr_await
    return " < ".join(reversed(lines[-3:]))
