"""The clocks of one machine in the simulation: both follow virtual time, the wall clock may be wrong."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.clock import MS_NS, Clock
from tests.simulation.scheduler import VirtualLoop

MONOTONIC_START_MS = 10_000_000


class MachineClock(Clock):
    """The program's clock, read from virtual time. ``wrong_ms`` is how far its wall clock is off.

    ``latest_ms``: what the wall clock showed at the most before it was set.
    """

    __slots__ = ("_loop", "_start_ms", "latest_ms", "wrong_ms")

    def __init__(self, loop: VirtualLoop, start_ms: int) -> None:
        super().__init__()
        self._loop = loop
        self._start_ms = start_ms
        self.wrong_ms = self.latest_ms = 0

    def set_wrong(self, ms: int) -> None:
        """Set the wall clock, to a time that is ``ms`` off."""
        self.latest_ms = max(self.latest_ms, self.wall_ms())
        self.wrong_ms = ms

    def wall_ms(self) -> int:
        return self._start_ms + self._loop.elapsed_ms + self.wrong_ms

    def wall_s(self) -> int:
        return (self._start_ms + self._loop.elapsed_ms + self.wrong_ms) // 1000

    def monotonic_ms(self) -> int:
        return MONOTONIC_START_MS + self._loop.elapsed_ms

    @property
    def monotonic_ns(self) -> Callable[[], int]:
        return lambda: (MONOTONIC_START_MS + self._loop.elapsed_ms) * MS_NS
