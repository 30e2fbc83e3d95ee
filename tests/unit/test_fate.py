from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from sidecar.billing.outbox.delta import Window
from sidecar.billing.outbox.fate import Fate, failed, pause_ms
from sidecar.billing.outbox.lanes import Work
from sidecar.billing.outbox.outbox import SETTLE_AFTER_S
from sidecar.billing.outbox.row import Row
from sidecar.billing.outbox.schedule import next_step
from sidecar.errors import SidecarError, StripeBusy, StripeRefused, StripeUnavailable

NOW_S = 1_795_000_000
ROW = Row(Window("t", "m", 0, NOW_S - 7_200), 1, "7", "abcdef", 1, 0, 0, NOW_S - 4_000, NOW_S + 86_400, 0, 0)
TRIED = structs.replace(ROW, first_sent_s=NOW_S - 100, last_sent_s=NOW_S - 100, tries=1)
WORK = Work("t", "m", "claim", 0, "cus_1", "mtr_1", "quota_m", NOW_S, 0, 1, 0, 0, False, 0, False, ROW)


def exists(message: str = "An event already exists with identifier abcdef.", **more: str) -> StripeRefused:
    return StripeRefused(f"Stripe refused: {message}", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "error", "outcome", "state"),
    [
        (ROW, StripeUnavailable("no answer"), "unknown", "waiting"),
        (ROW, StripeBusy("slower", "endpoint-rate"), "busy", "waiting"),
        (TRIED, exists(), "repeated", "delivered"),
        (
            TRIED,
            exists("A meter event with a duplicate identifier.", code="duplicate_meter_event"),
            "repeated",
            "delivered",
        ),
        (TRIED, exists("It already exists", param="identifier"), "repeated", "delivered"),
        (TRIED, exists("The customer already exists"), "refused", "waiting"),
        (ROW, StripeRefused("no", status=401), "refused", "waiting"),
        (ROW, StripeRefused("no", code="archived_meter"), "refused", "waiting"),
        (ROW, StripeRefused("no", code="resource_missing", param="payload[stripe_customer_id]"), "refused", "waiting"),
        (ROW, StripeRefused("no", param="payload[value]"), "parked", "parked"),
        (TRIED, StripeRefused("no", param="payload[value]"), "refused", "in_doubt"),
        (ROW, SidecarError("something else"), "unknown", "waiting"),
    ],
)
def test_what_an_answer_means(row: Row, error: SidecarError, outcome: str, state: str) -> None:
    found = failed(row, error)
    assert (found.outcome, found.state, found.surprising) == (outcome, state, False)


def test_an_event_that_nobody_here_can_have_sent_is_a_sign_of_a_ledger_that_went_back() -> None:
    assert failed(ROW, exists()).surprising
    assert failed(TRIED, StripeRefused("other parameters", code="idempotency_error")).surprising


def test_only_an_answer_that_stripe_keeps_changes_the_key_of_the_next_call() -> None:
    def kept(error: SidecarError) -> bool:
        return failed(ROW, error).kept

    assert kept(StripeUnavailable("answered 500", status=500))
    assert not kept(StripeUnavailable("no answer"))
    assert not kept(StripeUnavailable("the key is in use", status=409))
    assert not kept(StripeBusy("slower"))


def test_a_call_that_was_made_may_have_arrived_even_if_its_answer_says_to_slow_down() -> None:
    """A copy of it may have come before the one that was answered."""
    assert not failed(ROW, StripeBusy("slower")).no_effect


def test_only_one_customers_complaint_slows_nobody_else_down() -> None:
    def slow(reason: str) -> bool:
        found: Fate = failed(ROW, StripeBusy("slower", reason))
        return found.slow

    assert [slow(reason) for reason in ("", "global-rate", "endpoint-concurrency", "resource-specific")] == [
        True,
        True,
        True,
        False,
    ]


def test_pauses_grow_to_a_bound_and_never_meet() -> None:
    assert pause_ms("delivered", 0, 0.5) == 0
    assert [pause_ms("unknown", n, 1.0) for n in (0, 1, 2, 30)] == [1_000, 2_000, 4_000, 300_000]
    assert pause_ms("busy", 0, 0.0) == 125
    assert pause_ms("busy", 0, 0.3) != pause_ms("busy", 0, 0.4)


def step(**more: Any) -> str:
    row = structs.replace(ROW, **{name: more.pop(name) for name in list(more) if name in Row.__struct_fields__})
    return next_step(structs.replace(WORK, **{"row": row, **more}), 3_600).kind


def test_what_a_lane_does_next() -> None:
    assert step() == "send"
    assert step(first_sent_s=NOW_S - 22 * 3_600) == "send"
    assert step(first_sent_s=NOW_S - 23 * 3_600) == "doubt"
    assert step(deadline_s=NOW_S + 61) == "send"
    assert step(deadline_s=NOW_S + 60) == "move"
    assert step(deadline_s=NOW_S + 60, first_sent_s=NOW_S - 10) == "doubt"
    assert step(at_s=NOW_S - 35 * 86_400) == "move"
    assert step(at_s=NOW_S - 35 * 86_400, first_sent_s=NOW_S - 10) == "doubt"
    assert step(customer="") == "blocked"
    assert step(meter="") == "blocked"
    assert step(doubtful=True) == "settle"
    assert step(doubtful=True, meter="") == "idle"
    assert step(distrusted=True, restored_s=NOW_S - SETTLE_AFTER_S) == "verify"
    assert step(distrusted=True, restored_s=NOW_S - SETTLE_AFTER_S + 1) == "idle"
    assert next_step(structs.replace(WORK, row=None), 3_600).kind == "idle"
