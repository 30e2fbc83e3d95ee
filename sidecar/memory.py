"""Memory of a process that runs for weeks: what its start left over, and its garbage.

Guarantees: where it is tended no full collection interrupts decisions at a moment of its own choice. It would look at
            every tenant in memory, some hundred thousand objects, while requests wait.
Gives up:   cyclic garbage that is older than two young collections stays until there may be enough of it and the
            process is quiet, or for QUIET_S times PATIENCE at most.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

QUIET_S = 5.0
PATIENCE = 120
QUIET_REQUESTS = 500
WORTH = 100  # collections of the middle generation since the last full one, some hundred thousand objects
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
    """Collect all garbage when that is worth it and few requests came lately. ``served`` counts them."""
    gc.set_threshold(*THRESHOLDS)
    seen, waited = served(), 0
    while True:
        await asyncio.sleep(QUIET_S)
        now = served()
        waited += 1
        if gc.get_count()[2] >= WORTH and (now - seen < QUIET_REQUESTS or waited >= PATIENCE):
            gc.collect()
            waited = 0
        seen = now
