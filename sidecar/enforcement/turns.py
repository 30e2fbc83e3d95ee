"""How many requests may ask Redis about names that are not in memory, at the same moment.

Guarantees: a flood of made-up names holds at most AT_ONCE connections to Redis, so that those of leases and counts stay
            free; WAITING_MAX wait for a turn, none longer than WAIT_MS; being turned away says nothing against Redis.
Gives up:   a good client whose name is not in memory yet may be turned away in a flood; those in memory never are.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sidecar.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AT_ONCE = 6  # of the eight connections that a worker has (store/calls.py)
WAITING_MAX = 128
WAIT_MS = 25


class Turns:
    """Turns of one worker; ``refused`` counts those that had none in time."""

    def __init__(self) -> None:
        self.refused = 0
        self._waiting = 0
        self._free = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and take it; StoreUnavailable when there is none in time."""
        if not self._free.locked():
            await self._free.acquire()
        elif self._waiting >= WAITING_MAX or not await self._wait():
            self.refused += 1
            raise StoreUnavailable("too many requests ask for names that are not in memory")
        try:
            yield
        finally:
            self._free.release()

    async def _wait(self) -> bool:
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_MS / 1000):
                return await self._free.acquire()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
