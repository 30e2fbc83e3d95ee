"""A row of the outbox as it is sent."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from sidecar.billing.outbox.delta import Window


class Row(Struct, frozen=True):
    """Part ``number`` of a window. Times are 0 where there is none.

    ``first_sent_s`` and ``tries`` are those before the call at hand.
    """

    window: Window
    number: int
    value: str
    identifier: str
    attempt: int
    tries: int
    replays: int
    at_s: int
    deadline_s: int
    first_sent_s: int
    last_sent_s: int


def keys(rows: Sequence[Row]) -> tuple[list[str], list[str], list[int], list[int], list[int]]:
    """The keys of rows, a list for each column."""
    return (
        [row.window.tenant for row in rows],
        [row.window.metric for row in rows],
        [row.window.period_s for row in rows],
        [row.window.hour_s for row in rows],
        [row.number for row in rows],
    )
