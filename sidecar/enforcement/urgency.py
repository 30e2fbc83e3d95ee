"""What does not fit into a message: whether it is told at once, or with the next interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.enforcement.limit_state import LimitState

SAID_LATELY_MS = 400


def urgent(state: LimitState, now_ms: int, rest_ms: int) -> bool:
    """Whether what there is to say of a limit cannot wait for the next interval.

    Somebody may have to wait for units; or it has news or goes back, and nothing was said of it lately.
    """
    lease = state.lease
    if lease.need or lease.renewing:
        return True
    if now_ms - lease.reported_ms < SAID_LATELY_MS:
        return False
    return state.news or (state.left > 0 and state.goes_back(now_ms, rest_ms))
