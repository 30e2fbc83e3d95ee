"""Tenants by API key in memory, asked of Redis on first use.

Guarantees: a changed key is asked for again; the memory is bounded, and no number of unknown keys drives out a known.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.enforcement.turns import Turns
    from sidecar.store.client import Store
    from sidecar.telemetry import CoreCounters

T = TypeVar("T")

UNKNOWN_KEPT_MS = 5_000


class ApiKeys:
    """What Redis said of keys, by their SHA-256 (hex): at most ``most`` known ones, and as many unknown ones."""

    def __init__(self, store: Store, clock: Clock, counters: CoreCounters, turns: Turns, most: int) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._turns = turns
        self._most = most
        self._known: OrderedDict[str, str] = OrderedDict()
        self._unknown: OrderedDict[str, int] = OrderedDict()
        self._loading: set[asyncio.Task[str | None]] = set()
        self._edition = 0  # raised by every announced change

    def __len__(self) -> int:
        """How many are in memory, known and unknown."""
        return len(self._known) + len(self._unknown)

    def tenant_of(self, sha256: str) -> tuple[bool, str | None]:
        """(known, tenant) of a key; not known means that Redis has to be asked."""
        tenant = self._known.get(sha256)
        if tenant is None and self._unknown.get(sha256, 0) <= self._clock.monotonic_ms():
            self._counters.key_misses += 1
            return False, None
        self._counters.key_hits += 1
        return True, tenant

    async def load(self, sha256: str) -> str | None:
        """Ask Redis for the tenant of a key; the answer is remembered also when whoever asked waits no longer.

        Raises StoreUnavailable when Redis cannot say.
        """
        task = asyncio.get_running_loop().create_task(self._load(sha256))
        self._loading.add(task)
        task.add_done_callback(self._loaded)
        return await asyncio.shield(task)

    def changed(self, sha256: str) -> None:
        """Take note of an announced change of a key."""
        self._edition += 1
        self._known.pop(sha256, None)
        self._unknown.pop(sha256, None)

    def forget(self) -> None:
        """Changes were missed: ask again for every key."""
        self._edition += 1
        self._known.clear()
        self._unknown.clear()

    async def _load(self, sha256: str) -> str | None:
        edition = self._edition
        async with self._turns.turn():
            tenant = await self._store.tenant_of_key(sha256)
        if edition != self._edition:
            return tenant  # the answer may be from before a change, which nobody announces again
        if tenant is None:
            remember(self._unknown, sha256, self._clock.monotonic_ms() + UNKNOWN_KEPT_MS, self._most)
        else:
            self._unknown.pop(sha256, None)
            remember(self._known, sha256, tenant, self._most)
        return tenant

    def _loaded(self, task: asyncio.Task[str | None]) -> None:
        self._loading.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved here too: whoever asked may be gone by now


def remember(names: OrderedDict[str, T], name: str, value: T, most: int) -> None:
    """Keep what was learnt of a name, in place of the oldest one if need be."""
    if len(names) >= most and name not in names:
        names.popitem(last=False)
    names[name] = value
