"""The stand-in's time: the machine's, moved by the offset of `sidecar dev` and by its own.

Guarantees: whole seconds never go back, even when an offset does.
"""

from __future__ import annotations

import re
from pathlib import Path

from sidecar.clock import Clock

UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?", re.ASCII)


class StandInClock:
    """Unix time; ``own_ms`` is kept with the state."""

    __slots__ = ("_clock", "_latest_ms", "own_ms")

    def __init__(self, file: Path | None = None) -> None:
        self._clock = Clock(file)
        self._latest_ms = 0
        self.own_ms = 0

    def now_ms(self) -> int:
        self._latest_ms = max(self._latest_ms, self._clock.wall_ms() + self.own_ms)
        return self._latest_ms

    def now_s(self) -> int:
        return self.now_ms() // 1000

    def monotonic_ms(self) -> int:
        """Real elapsed time, for rates."""
        return self._clock.monotonic_ms()

    def advance(self, ms: int) -> None:
        self.own_ms += ms


def duration_ms(text: str) -> int:
    """Read ``36h`` or ``1d12h``; raises ValueError."""
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise ValueError(f"{text!r} is no duration; write whole numbers with d, h, m, s or ms, largest first")
    return sum(int(number) * unit for number, unit in zip(found.groups(), UNITS_MS.values(), strict=True) if number)
