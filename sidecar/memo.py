"""Bounded memory of what was worked out before.

Guarantees: a memo never grows beyond its bound, whatever a client sends; the oldest eighth leaves when it is full.
Gives up:   keeping what is used most: a flood of new keys drives out hot ones, which are then worked out again.
"""

from __future__ import annotations

from itertools import islice
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def remember(memo: dict[K, V], key: K, value: V, entries_max: int) -> V:
    """Keep a value, at the cost of the oldest eighth when the memo is full."""
    if len(memo) >= entries_max and key not in memo:
        # One at a time would be slow: a dictionary looks for its first entry among all that were freed before it.
        for oldest in list(islice(memo, max(1, entries_max // 8))):
            del memo[oldest]
    memo[key] = value
    return value


def shared(memo: dict[V, V], value: V, entries_max: int) -> V:
    """The first of all equal values, so that whoever needs such a value for long refers to the same object."""
    found = memo.get(value)
    return remember(memo, value, value, entries_max) if found is None else found
