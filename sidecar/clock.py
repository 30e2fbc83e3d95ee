"""The two clocks of a process: wall time for periods and windows, monotonic time for leases.

Guarantees: the wall clock of every process of a ``sidecar dev`` moves at once, by one shared 8-byte offset.
Gives up:   moving the monotonic clock. Leases run by elapsed time at both ends, so moving it would only expire
            them all at once; whoever judges a writer's silence must therefore leave the offset out, too.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, MutableSequence
from functools import partial
from pathlib import Path
from typing import cast

OFFSET_BYTES = 8
MS_NS = 1_000_000

# CLOCK_MONOTONIC stands still while a machine is suspended, so a lease would seem fresh after hours of sleep
# although Redis took it back long ago. CLOCK_BOOTTIME counts the sleep (elsewhere than Linux there is none).
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """Milliseconds as integers. Without a file the wall clock is the machine's and cannot be moved."""

    __slots__ = ("_offset_ms", "_path")

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._offset_ms: MutableSequence[int] = [0] if path is None else _mapped(path)

    @property
    def movable(self) -> bool:
        """Whether ``advance`` reaches the other processes too."""
        return self._path is not None

    @property
    def offset_ms(self) -> int:
        """How far the wall clock was moved; scripts in Redis add it to the server's time."""
        return self._offset_ms[0]

    def wall_ms(self) -> int:
        """Unix time, moved by the offset."""
        return time.time_ns() // MS_NS + self._offset_ms[0]

    def wall_s(self) -> int:
        """Unix time in whole seconds."""
        return self.wall_ms() // 1000

    def monotonic_ms(self) -> int:
        """Time that only grows and also counts while the machine is suspended."""
        return time.clock_gettime_ns(_BOOTTIME) // MS_NS

    @property
    def monotonic_ns(self) -> Callable[[], int]:
        """What reads the same time in nanoseconds, without a step of Python's: for whoever does so for each request."""
        return partial(time.clock_gettime_ns, _BOOTTIME)

    def advance(self, ms: int) -> int:
        """Move the wall clock of every process that shares the file; returns the offset now in force."""
        self._offset_ms[0] += ms
        return self._offset_ms[0]


def _mapped(path: Path) -> MutableSequence[int]:
    """Map the offset file, made zero when it is new. A 64-bit aligned store is seen whole by other processes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size < OFFSET_BYTES:
            os.ftruncate(descriptor, OFFSET_BYTES)
        mapping = mmap.mmap(descriptor, OFFSET_BYTES)
    finally:
        os.close(descriptor)
    return cast("MutableSequence[int]", memoryview(mapping).cast("q"))
