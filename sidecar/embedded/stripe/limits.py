"""Calls a second, and calls that must be alone.

Guarantees: within any second no more calls than the limit are taken.
Source: https://docs.stripe.com/rate-limits
"""

from __future__ import annotations

from collections import deque

from sidecar.embedded.stripe.account import Options
from sidecar.embedded.stripe.errors import rate_limited

WINDOW_MS = 1_000


class Limits:
    """What is under way and what was, in real time."""

    def __init__(self) -> None:
        self._all: deque[int] = deque()
        self._metered: deque[int] = deque()
        self._alone: set[tuple[str, str]] = set()

    def count(self, options: Options, now_ms: int, *, metered: bool) -> None:
        """Count a call against its rates; raises Refused."""
        _count(self._all, options.calls_per_s, now_ms, "global-rate")
        if metered:
            _count(self._metered, options.meter_calls_per_s, now_ms, "endpoint-rate")

    def enter(self, who: tuple[str, str]) -> None:
        """Begin a call that must be alone; raises Refused while another one runs."""
        if who in self._alone:
            raise rate_limited(
                "resource-specific",
                "Another meter event for this customer and meter is being created. Only one concurrent call per "
                "customer per meter is allowed.",
            )
        self._alone.add(who)

    def leave(self, who: tuple[str, str]) -> None:
        self._alone.discard(who)


def _count(calls: deque[int], limit: int, now_ms: int, reason: str) -> None:
    if not limit:
        return
    while calls and calls[0] <= now_ms - WINDOW_MS:
        calls.popleft()
    if len(calls) >= limit:
        raise rate_limited(reason)
    calls.append(now_ms)
