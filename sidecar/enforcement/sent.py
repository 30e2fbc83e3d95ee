"""One tenant's part of a message, as whoever sent it has to remember it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sidecar.enforcement.account import Account
    from sidecar.enforcement.limit_state import LimitState
    from sidecar.store.messages import LeaseReport
    from sidecar.usage.window import Window


class Sent(NamedTuple):
    """What a message said of one tenant, kept until its reply."""

    account: Account
    revision: int
    windows: list[tuple[Window, int]]
    limits: list[tuple[LimitState, LeaseReport, int]]
    departed: tuple[LimitState, ...]
