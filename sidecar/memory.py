"""Memory of a process that runs for weeks: what its start left over, and its garbage.

Guarantees: where it is tended a collection looks at what is new only. To look at every tenant in memory, some hundred
            thousand objects, takes half a second: once in FULL_S at most, when the process is quiet, or in PATIENCE_S.
Gives up:   cyclic garbage of objects that were older than SLICE_S when they became garbage stays until then.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

SLICE_S = 0.25
QUIET_S = 5.0
QUIET_REQUESTS = 500
FULL_S = 3_600.0
PATIENCE_S = 6 * FULL_S
# Young objects are collected more often than by default, fewer at a time: each lives through the same two collections,
# which last some hundredths of a millisecond. The last number says how many of the second make a full one.
THRESHOLDS = (200, 4, 1_000_000)


def settle() -> None:
    """Call once, when everything was built that lives as long as the process."""
    gc.collect()
    gc.freeze()
    # Importing leaves holes that the allocator would keep: a fifth of a worker's memory.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def tend(served: Callable[[], int]) -> None:
    """Collect garbage: of what is new a little at a time, of everything when few requests came lately.

    ``served`` counts them. What was looked at is frozen, so that the next look is at what came since.
    """
    gc.set_threshold(*THRESHOLDS)
    seen, slices = served(), 0
    while True:
        await asyncio.sleep(SLICE_S)
        slices += 1
        if gc.get_count()[2]:  # young collections that left something
            gc.collect()
            gc.freeze()
        if slices * SLICE_S % QUIET_S:
            continue
        now = served()
        quiet, seen = now - seen < QUIET_REQUESTS, now
        if slices * SLICE_S >= (FULL_S if quiet else PATIENCE_S):
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            slices = 0
