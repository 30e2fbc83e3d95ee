"""One answer for one request that a gateway asks twice (a retry, an internal redirect).

Guarantees: a repeat of an allowed request within the kept time, at the same worker, counts once.
Gives up:   repeats at another worker, and the oldest entries when there are more than ENTRIES_MAX.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from sidecar.enforcement.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


ENTRIES_MAX = 50_000

RequestKey = tuple[str, str, str]


class Kept(Struct, gc=False):
    """An answer, or what it was made of: it is made again only if the request is repeated.

    There are many of these, so the garbage collector does not look at them.
    """

    until_ms: int
    answer: Any  # Decision, or Allowance with the numbers that it had
    remaining: int = 0
    reset_s: int = 0


def suffix(tenant: str, route: str) -> bytes:
    """What makes a request id the key of a repeat; no part of it holds a NUL."""
    return f"\0{tenant}\0{route}".encode()


class Repeats:
    """Allowed requests of the last ``kept_ms``, by (request id, tenant, route); 0 turns it off.

    Two dictionaries take turns, so that nothing has to be looked through for what is too old; the older one is emptied
    a little with each new entry, since thousands at once would hold up the requests of that moment.
    ``waiting``: requests with an id that wait for Redis right now.
    """

    def __init__(self, kept_ms: int) -> None:
        self.kept_ms = kept_ms
        self.waiting: dict[RequestKey, asyncio.Future[Decision]] = {}
        self._current: dict[bytes, Kept] = {}
        self._previous: dict[bytes, Kept] = {}
        self._leaving: dict[bytes, Kept] = {}
        self._turn_ms = 0

    def find(self, request_id: str, tenant: str, route: str, now_ms: int) -> Decision | None:
        """The answer given to this request a moment ago."""
        key = _encoded(request_id) + suffix(tenant, route)
        if not self.is_repeat(key, now_ms):
            return None
        kept = self._current.get(key) or self._previous[key]
        if not isinstance(kept.answer, Decision):
            kept.answer = kept.answer.decision(kept.remaining, kept.reset_s)
        decision: Decision = kept.answer
        return decision

    def keep(self, request_id: str, tenant: str, route: str, decision: Decision, now_ms: int) -> None:
        """Remember an answer."""
        if self.kept_ms:
            self.remember(_encoded(request_id) + suffix(tenant, route), Kept(now_ms + self.kept_ms, decision), now_ms)

    def is_repeat(self, key: bytes, now_ms: int) -> bool:
        """Whether there is an answer under a key, which is a request id with its ``suffix``."""
        kept = self._current.get(key) or self._previous.get(key)
        return kept is not None and now_ms < kept.until_ms

    def remember(self, key: bytes, kept: Kept, now_ms: int) -> None:
        """Remember what an answer is made of."""
        if now_ms >= self._turn_ms or len(self._current) >= ENTRIES_MAX:
            self._leaving, self._previous, self._current = self._previous, self._current, {}
            self._turn_ms = now_ms + self.kept_ms
        self._current[key] = kept
        if self._leaving:
            self._leaving.popitem()

    def pending(self, request_id: str, tenant: str, route: str) -> bool:
        """Whether the same request is waiting for Redis right now."""
        return (request_id, tenant, route) in self.waiting

    async def once(self, key: RequestKey, decide: Callable[[], Awaitable[Decision]]) -> Decision:
        """Decide, or share the answer of the same request that is being decided."""
        if not self.kept_ms:
            return await decide()
        while (pending := self.waiting.get(key)) is not None:
            # If the one that was deciding went away with its connection, the next one decides.
            await asyncio.wait([pending])
            if not pending.cancelled():
                return pending.result()
        future = self.waiting[key] = asyncio.get_running_loop().create_future()
        try:
            decision = await decide()
            future.set_result(decision)
        except BaseException:
            future.cancel()
            raise
        finally:
            del self.waiting[key]
        return decision


def _encoded(request_id: str) -> bytes:
    """Bytes for a request id: those it came in if it is ASCII, as all are that the fast path is asked with."""
    return request_id.encode("utf-8", "surrogatepass")
