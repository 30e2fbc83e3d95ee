"""The windows of one shard that a writer keeps until their hour is over and the ledger has them.

Guarantees: a cell of the journal is freed only when the ledger has its value, and its hour is over by both clocks.
Gives up:   nothing is examined all at once: some hundred windows a call, the oldest first, and in turn.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.enforcement.account import Account
    from sidecar.usage.journal import Journal
    from sidecar.usage.window import Window

# A cell whose hour came back with a step of the clock would start from 0 again, below what Redis has.
HOURS_KEPT = 1
EXAMINED_AT_ONCE = 256


class Kept:
    """Windows in the order in which they were opened. ``freed_hour`` is the latest (unix s // 3600) of those freed."""

    __slots__ = ("_journal", "_windows", "freed_hour")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._windows: deque[Window] = deque()
        self.freed_hour = 0

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[Window]:
        return iter(self._windows)

    def add(self, window: Window) -> None:
        self._windows.append(window)

    def moved(self) -> Iterator[Window]:
        """Move every window that is counted in memory to the journal's file. Decisions may come between two."""
        for window in tuple(self._windows):
            if owner(window).windows.get(window.id) is window:
                window.place(self._journal.moved(window.key.encode(), window.cell))
            yield window

    def release(self, hour: int, redis_hour: int, watermark: int) -> None:
        """Free cells whose hour is over, and the one after it, and whose value the ledger has by its ``watermark``.

        Over by Redis' clock too: this machine's alone may be far ahead, and step back to hours that were freed.
        """
        windows = self._windows
        first_kept = min(hour, redis_hour) - HOURS_KEPT
        for _ in range(min(len(windows), EXAMINED_AT_ONCE)):
            window = windows[0]
            its_hour = window.id[2]
            if first_kept <= its_hour <= hour:
                return
            windows.popleft()
            if its_hour < first_kept and window.in_ledger(watermark):
                account = owner(window)
                self.freed_hour = max(self.freed_hour, its_hour)
                account.windows = account.windows.without(window.id)
                # A charge worked out for that hour must not reach the cell again, even if the wall clock steps back.
                account.drop_charges()
                self._journal.free(window.cell)
            else:
                windows.append(window)


def owner(window: Window) -> Account:
    """The account that counts in it."""
    return cast("Account", window.owner)
