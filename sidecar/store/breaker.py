"""Circuit breaker of the store: after repeated failures nobody waits for Redis, and probes find out when it is back."""

from __future__ import annotations


class Breaker:
    """Opens after ``failures_max`` failures in a row; lets one probe through every ``probe_ms``.

    Times are monotonic milliseconds, given by the caller.
    """

    __slots__ = ("_failures", "_next_probe_ms", "failures_max", "opened", "probe_ms")

    def __init__(self, failures_max: int = 3, probe_ms: int = 250) -> None:
        self.failures_max = failures_max
        self.probe_ms = probe_ms
        self.opened = 0
        self._failures = 0
        self._next_probe_ms = 0

    @property
    def open(self) -> bool:
        return self._failures >= self.failures_max

    def would_allow(self, now_ms: int) -> bool:
        """Whether a call could be made now, which is not the same a moment later."""
        return self._failures < self.failures_max or now_ms >= self._next_probe_ms

    def allows(self, now_ms: int) -> bool:
        """Whether a call may be made now; an open breaker allows one a ``probe_ms``."""
        if not self.would_allow(now_ms):
            return False
        if self.open:
            self._next_probe_ms = now_ms + self.probe_ms
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, now_ms: int) -> None:
        self._failures += 1
        if self._failures == self.failures_max:
            self.opened += 1
        self._next_probe_ms = now_ms + self.probe_ms
