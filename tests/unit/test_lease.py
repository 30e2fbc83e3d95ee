from __future__ import annotations

from sidecar.catalogue.snapshot import LimitRule
from sidecar.enforcement.lease import IDLE_AFTER_MS, LimitState
from sidecar.store.messages import LeaseReply

RULE = LimitRule(
    name="calls",
    metric="calls",
    period="month",
    scope="tenant",
    routes=(),
    included=1_000,
    stop=1_000,
    beyond="deny",
    grace_s=0,
    on_outage="closed",
    outage_units=0,
    shadow=False,
)
NOW_MS = 50_000


def granted(state: LimitState, now_ms: int) -> int:
    """Report, and have Redis grant all that is wanted; what is left then."""
    sent = state.report(now_ms, 2, 1_000_000)
    reply = LeaseReply(
        units=sent.left + sent.want, spent=state.used, held=sent.left + sent.want, over_ms=0, called=False
    )
    state.settle(sent, state.own, reply, now_ms, renewed=True)
    return state.left


def test_units_fetched_for_somebody_who_waits_are_still_there_when_it_is_his_turn() -> None:
    """Another tenant's request may have the shard synced again before the one who waited runs."""
    state = LimitState(RULE, "calls", 0, 10_000_000, leased=True)
    state.wait_for(1)
    first = granted(state, NOW_MS)
    assert first >= 1
    assert granted(state, NOW_MS + 1) == first
    assert granted(state, NOW_MS + IDLE_AFTER_MS - 1) == first


def test_a_lease_that_nobody_spends_is_given_back() -> None:
    state = LimitState(RULE, "calls", 0, 10_000_000, leased=True)
    state.wait_for(1)
    granted(state, NOW_MS)
    state.spend(1)
    granted(state, NOW_MS + 100)
    assert state.left > 0
    assert granted(state, NOW_MS + 100 + IDLE_AFTER_MS) == 0
