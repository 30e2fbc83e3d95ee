"""One answer for one request that a gateway asks twice (a retry, an internal redirect).

Guarantees: a repeat of an allowed request within the kept time, at the same worker, counts once.
Gives up:   repeats at another worker, and the oldest entries when there are more than ENTRIES_MAX.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.enforcement.decision import Decision

ENTRIES_MAX = 50_000

RequestKey = tuple[str, str, str]


class Repeats:
    """Allowed requests of the last ``kept_ms``, by (request id, tenant, route); 0 turns it off.

    Two dictionaries take turns, so that forgetting costs nothing per entry.
    """

    def __init__(self, kept_ms: int) -> None:
        self._kept_ms = kept_ms
        self._current: dict[RequestKey, tuple[int, Decision]] = {}
        self._previous: dict[RequestKey, tuple[int, Decision]] = {}
        self._turn_ms = 0
        self._pending: dict[RequestKey, asyncio.Future[Decision]] = {}

    def find(self, request_id: str, tenant: str, route: str, now_ms: int) -> Decision | None:
        """The answer given to this request a moment ago."""
        key = (request_id, tenant, route)
        found = self._current.get(key) or self._previous.get(key)
        return found[1] if found is not None and now_ms < found[0] else None

    def keep(self, request_id: str, tenant: str, route: str, decision: Decision, now_ms: int) -> None:
        """Remember an answer."""
        if not self._kept_ms:
            return
        if now_ms >= self._turn_ms or len(self._current) >= ENTRIES_MAX:
            self._previous, self._current = self._current, {}
            self._turn_ms = now_ms + self._kept_ms
        self._current[request_id, tenant, route] = (now_ms + self._kept_ms, decision)

    def pending(self, request_id: str, tenant: str, route: str) -> bool:
        """Whether the same request is waiting for Redis right now."""
        return (request_id, tenant, route) in self._pending

    async def once(self, key: RequestKey, decide: Callable[[], Awaitable[Decision]]) -> Decision:
        """Decide, or share the answer of the same request that is being decided."""
        if not self._kept_ms:
            return await decide()
        while (pending := self._pending.get(key)) is not None:
            # If the one that was deciding went away with its connection, the next one decides.
            await asyncio.wait([pending])
            if not pending.cancelled():
                return pending.result()
        future = self._pending[key] = asyncio.get_running_loop().create_future()
        try:
            decision = await decide()
            future.set_result(decision)
        except BaseException:
            future.cancel()
            raise
        finally:
            del self._pending[key]
        return decision
