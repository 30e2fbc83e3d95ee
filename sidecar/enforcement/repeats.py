"""One answer for one request that a gateway asks twice (a retry, an internal redirect).

Guarantees: a repeat of an allowed request within the kept time, at the same worker, counts once.
Gives up:   repeats at another worker, and the oldest entries when there are more than ENTRIES_MAX.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from sidecar.enforcement import verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.enforcement.account import Account
    from sidecar.enforcement.decision import Decision
    from sidecar.enforcement.lease import LimitState

ENTRIES_MAX = 50_000

RequestKey = tuple[str, str, str]


class _Kept(Struct, gc=False):
    """An answer, or what it was made of: it is made again only if the request is repeated.

    There are many of these, so the garbage collector does not look at them.
    """

    until_ms: int
    decision: Any  # Decision | None
    account: Any = None
    mark: int = 0
    state: Any = None
    remaining: int = 0
    reset_s: int = 0


def suffix(tenant: str, route: str) -> str:
    """What makes a request id the key of a repeat; no part of it holds a NUL."""
    return f"\0{tenant}\0{route}"


class Repeats:
    """Allowed requests of the last ``kept_ms``, by (request id, tenant, route); 0 turns it off.

    Two dictionaries take turns, so that forgetting costs nothing per entry.
    """

    def __init__(self, kept_ms: int) -> None:
        self._kept_ms = kept_ms
        self._current: dict[str, _Kept] = {}
        self._previous: dict[str, _Kept] = {}
        self._turn_ms = 0
        self._pending: dict[RequestKey, asyncio.Future[Decision]] = {}

    @property
    def waiting(self) -> bool:
        """Whether any request with an id is waiting for Redis right now."""
        return bool(self._pending)

    def find(self, request_id: str, tenant: str, route: str, now_ms: int) -> Decision | None:
        """The answer given to this request a moment ago."""
        kept = self._find(request_id + suffix(tenant, route), now_ms)
        if kept is None:
            return None
        if kept.decision is None:
            kept.decision = verdict.allowance(kept.account, kept.mark, kept.state, kept.remaining, kept.reset_s)
        decision: Decision = kept.decision
        return decision

    def keep(self, request_id: str, tenant: str, route: str, decision: Decision, now_ms: int) -> None:
        """Remember an answer."""
        self._keep(request_id + suffix(tenant, route), _Kept(now_ms + self._kept_ms, decision), now_ms)

    def is_repeat(self, key: str, now_ms: int) -> bool:
        """Whether there is an answer under a key, which is a request id with its ``suffix``."""
        return self._find(key, now_ms) is not None

    def keep_allowance(
        self,
        key: str,
        now_ms: int,
        account: Account,
        mark: int,
        state: LimitState | None,
        remaining: int,
        reset_s: int,
    ) -> None:
        """Remember what an answer is made of."""
        self._keep(key, _Kept(now_ms + self._kept_ms, None, account, mark, state, remaining, reset_s), now_ms)

    def _find(self, key: str, now_ms: int) -> _Kept | None:
        kept = self._current.get(key) or self._previous.get(key)
        return kept if kept is not None and now_ms < kept.until_ms else None

    def _keep(self, key: str, kept: _Kept, now_ms: int) -> None:
        if not self._kept_ms:
            return
        if now_ms >= self._turn_ms or len(self._current) >= ENTRIES_MAX:
            self._previous, self._current = self._current, {}
            self._turn_ms = now_ms + self._kept_ms
        self._current[key] = kept

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
