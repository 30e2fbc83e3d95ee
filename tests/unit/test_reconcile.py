"""Ledger, outbox and Stripe compared, without any of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from sidecar.billing.outbox.delta import Window
from sidecar.billing.reconciliation import drift
from sidecar.billing.reconciliation.drift import (
    IN_DOUBT,
    LATE,
    PARKED,
    RECENT,
    UNEXPLAINED,
    WAITING,
    Lane,
    Rows,
    Seen,
    Span,
    Windows,
    compare,
)
from sidecar.billing.reconciliation.pinpoint import Minute, SentRow, blame

DAY_S = 86_400
TODAY = 20_000 * DAY_S
NOW = TODAY + 7_200
DAY = Span("day", TODAY, TODAY, TODAY + DAY_S)
PERIOD = Span("period", 0, TODAY - 10 * DAY_S, TODAY + DAY_S)


def lane(*parts: Windows | Rows, **more: object) -> Lane:
    fields = {
        "tenant": "a",
        "metric": "m",
        "customer": "cus",
        "meters": ("mtr",),
        "scale": 0,
        "from_s": 0,
        "periods": (TODAY - 10 * DAY_S,),
        "windows": tuple(part for part in parts if isinstance(part, Windows)),
        "rows": tuple(part for part in parts if isinstance(part, Rows)),
    }
    return structs.replace(Lane(**fields), **more)  # type: ignore[arg-type]


def rows(
    state: str,
    amount: int,
    day_s: int = TODAY,
    at_day_s: int = TODAY,
    period: int = 0,
    at_period: int = 0,
    shown_period: int | None = None,
) -> Rows:
    shown_period = at_period if shown_period is None else shown_period
    return Rows(day_s, period, at_day_s, at_period, shown_period, state, amount)  # type: ignore[arg-type]


def test_what_agrees_is_no_difference() -> None:
    line = compare(lane(Windows(TODAY, 0, 7), rows("delivered", 7)), DAY, Seen(7))
    assert line.explained == {}
    assert line.drift == 0
    assert drift.differences([line]) == []


def test_each_state_of_a_row_is_an_explanation() -> None:
    for state, kind in (("waiting", WAITING), ("in_doubt", IN_DOUBT), ("parked", PARKED), ("recent", RECENT)):
        line = compare(lane(Windows(TODAY, 0, 12), rows("delivered", 7), rows(state, 5)), DAY, Seen(7))
        assert line.explained == {kind: -5}, state
        assert line.drift == -5
        assert not line.matters


def test_what_may_have_arrived_explains_as_much_as_it_stands_for() -> None:
    told = lane(Windows(TODAY, 0, 12), rows("delivered", 7), rows("in_doubt", 5))
    assert compare(told, DAY, Seen(12)).explained == {}
    assert compare(told, DAY, Seen(10)).explained == {IN_DOUBT: -2}
    assert compare(told, DAY, Seen(13)).explained == {UNEXPLAINED: 1}
    assert compare(told, DAY, Seen(6)).explained == {IN_DOUBT: -5, UNEXPLAINED: -1}


def test_what_was_not_decided_yet_waits() -> None:
    told = lane(Windows(TODAY, 0, 12, undecided=5, missed=5, missed_from_s=TODAY), rows("delivered", 7))
    assert compare(told, DAY, Seen(7)).explained == {WAITING: -5}
    assert drift.missed_from(told) == TODAY
    assert drift.missed_from(lane(Windows(TODAY, 0, 12))) is None


def test_late_usage_is_missing_in_its_day_and_found_in_another() -> None:
    before = TODAY - 3 * DAY_S
    late = rows("delivered", 5, day_s=before, at_day_s=TODAY, period=0, at_period=1)
    told = lane(Windows(before, 0, 5), Windows(TODAY, 1, 7), rows("delivered", 7, period=1, at_period=1), late)
    earlier = Span("day", before, before, before + DAY_S)
    assert compare(told, earlier, Seen(0)).explained == {LATE: -5}
    assert compare(told, DAY, Seen(12)).explained == {LATE: 5}
    assert compare(told, PERIOD, Seen(0)).explained == {LATE: -5}
    assert compare(told, Span("period", 1, TODAY, TODAY + DAY_S), Seen(12)).explained == {LATE: 5}


def test_what_arrived_in_the_minute_a_period_turns_in_belongs_to_the_invoice_that_has_it() -> None:
    following = Span("period", 1, TODAY, TODAY + DAY_S)
    windows = Windows(TODAY, 0, 12), Windows(TODAY, 1, 3)
    told = lane(
        *windows,
        rows("delivered", 7),
        rows("delivered", 5, shown_period=1),
        rows("delivered", 3, period=1, at_period=1),
    )
    assert drift.used(lane(rows("delivered", 5, shown_period=1)), following), "Stripe shows something there"
    for span, shown, amounts in ((PERIOD, 7, (12, 12)), (following, 8, (3, 3))):
        line = compare(told, span, Seen(shown))
        assert line.explained == {}
        assert (line.ledger, line.stripe, line.late) == (*amounts, 0)
    # What Stripe lacks is missing where its summary would show it, in the day as in one of the periods.
    assert compare(told, following, Seen(3)).explained == {UNEXPLAINED: -5}
    assert compare(told, DAY, Seen(10)).explained == {UNEXPLAINED: -5}


def test_what_may_have_arrived_in_the_minute_a_period_turns_in_explains_the_period_it_would_show_in() -> None:
    following = Span("period", 1, TODAY, TODAY + DAY_S)
    for state, kind in (("in_doubt", IN_DOUBT), ("recent", RECENT)):
        told = lane(Windows(TODAY, 0, 5), rows(state, 5, shown_period=1))
        assert compare(told, PERIOD, Seen(0)).explained == {LATE: -5}
        assert compare(told, following, Seen(5)).explained == {LATE: 5}
        assert compare(told, following, Seen(0)).explained == {LATE: 5, kind: -5}
    told = lane(Windows(TODAY, 0, 5), rows("parked", 5, shown_period=1))
    assert compare(told, PERIOD, Seen(0)).explained == {PARKED: -5}
    assert compare(told, following, Seen(0)).explained == {}


def test_late_usage_that_waits_is_both_late_and_waiting() -> None:
    before = TODAY - 3 * DAY_S
    told = lane(Windows(before, 0, 5), rows("waiting", 5, day_s=before))
    line = compare(told, DAY, Seen(0))
    assert line.explained == {LATE: 5, WAITING: -5}
    assert line.drift == 0
    assert drift.differences([line]) == [line]


def test_a_lane_not_compared_since_a_restore_is_in_doubt() -> None:
    told = lane(Windows(TODAY, 0, 7), rows("delivered", 7), distrusted=True)
    assert compare(told, DAY, Seen(9)).explained == {IN_DOUBT: 2}


def test_rows_beyond_the_ledger_are_unexplained() -> None:
    line = compare(lane(Windows(TODAY, 0, 5, beyond=2), rows("delivered", 7)), DAY, Seen(7))
    assert line.explained == {UNEXPLAINED: 2}
    assert drift.unaccounted(lane(Windows(TODAY, 0, 5, beyond=2)), DAY, line) == 0


def test_a_float_is_exact_as_far_as_it_goes() -> None:
    assert drift.seen([0.1 + 0.2], 1) == Seen(3, 0)
    assert drift.seen([1.5, 2.25], 3) == Seen(3750, 0)
    assert drift.seen([123456789.123], 3) == Seen(123456789123, 0)
    large = drift.seen([float(2**60)], 0)
    assert large.blur >= 256
    told = lane(Windows(TODAY, 0, 2**60 + 100), rows("delivered", 2**60 + 100))
    assert compare(told, DAY, large).explained == {}
    assert compare(told, DAY, large).drift == 0


amounts = st.integers(0, 10**6)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["delivered", "recent", "waiting", "in_doubt", "parked"]),
            amounts,
            *[st.sampled_from([0, 1])] * 5,
        ),
        max_size=8,
    ),
    amounts,
    amounts,
    amounts,
    st.booleans(),
    st.sampled_from([DAY, PERIOD]),
)
def test_explanations_add_up_to_the_drift(
    parts: list[tuple[str, int, int, int, int, int, int]],
    undecided: int,
    beyond: int,
    shown: int,
    distrusted: bool,
    span: Span,
) -> None:
    found = [
        rows(state, amount, TODAY + day * DAY_S, TODAY + at_day * DAY_S, *periods)
        for state, amount, day, at_day, *periods in parts
    ]
    stood_for = sum(row.amount for row in found if (row.day_s if span.kind == "day" else row.period) == span.number)
    beyond = min(beyond, stood_for)
    counted = Windows(TODAY, 0, stood_for + undecided - beyond, undecided, beyond=beyond)
    line = compare(lane(counted, *found, distrusted=distrusted), span, Seen(shown))
    at_turns = sum(
        row.amount * ((row.at_period == 0) - (row.shown_period == 0))
        for row in found
        if row.state == "delivered" and span.kind == "period"
    )
    assert sum(line.explained.values()) == line.drift == shown + at_turns - counted.ledger
    assert line.matters == bool(line.unexplained)


def test_days_begin_when_billing_began_and_periods_reach_back() -> None:
    starts = drift.period_starts(TODAY - 5 * DAY_S, TODAY + 60, TODAY - 40 * DAY_S + 30, 1)
    assert all(start % 60 == 30 for start in starts)
    told = lane(periods=starts, from_s=TODAY - 2 * DAY_S + 3_600)
    found = drift.spans(told, TODAY - 5 * DAY_S, TODAY + 60)
    days = [span for span in found if span.kind == "day"]
    assert [span.from_s - TODAY for span in days] == [-2 * DAY_S + 3_600, -DAY_S, 0]
    periods = [span for span in found if span.kind == "period"]
    assert all(span.from_s % 60 == 0 for span in periods), "as summaries"
    assert periods[0].from_s == max(starts[0], told.from_s) or len(periods) == len(starts)
    assert periods[-1].to_s == TODAY + DAY_S


def sent(amount: int, state: str = "delivered", *, number: int = 1, attempt: int = 1, adopted: bool = False) -> SentRow:
    return SentRow(
        Window("a", "m", 0, TODAY), number, amount, f"id{number}", attempt, state, adopted, False, TODAY, 1, 1
    )


def test_the_row_that_stripe_lacks_is_told_from_those_it_has() -> None:
    found = blame(Seen(7), [sent(7), sent(5, number=2)], NOW)
    assert [(finding.blame, finding.row.number) for finding in found.findings] == [("lacking", 2)]
    assert sum(finding.amount for finding in found.findings) == -5


def test_rows_of_equal_amounts_stand_for_each_other() -> None:
    found = blame(Seen(5), [sent(5), sent(5, number=2)], NOW)
    assert [finding.blame for finding in found.findings] == ["lacking"]
    assert found.unknown == 0


def test_sums_that_allow_several_answers_name_nobody() -> None:
    assert blame(Seen(3), [sent(3), sent(2, number=2), sent(1, number=3)], NOW) == Minute(unknown=-3)
    assert blame(Seen(1), [sent(7)], NOW) == Minute(unknown=-6)
    assert blame(Seen(0), [sent(7, adopted=True)], NOW) == Minute(unknown=-7)


def test_what_is_too_much_is_an_earlier_attempt_or_a_parked_row_or_somebody_elses() -> None:
    assert [f.blame for f in blame(Seen(14), [sent(7, attempt=2)], NOW).findings] == ["doubled"]
    assert [f.blame for f in blame(Seen(12), [sent(7), sent(5, "parked", number=2)], NOW).findings] == ["arrived"]
    assert blame(Seen(14), [sent(7)], NOW) == Minute(foreign=7)
    assert blame(Seen(12), [sent(5, "parked"), sent(5, number=2, attempt=2), sent(2, number=3)], NOW).unknown == 5


def test_what_need_not_show_yet_is_blamed_for_nothing_and_nobody_is_for_it() -> None:
    new = structs.replace(sent(7, number=2), delivered_s=NOW - 60)
    assert blame(Seen(7), [sent(7), new], NOW) == Minute()
    found = blame(Seen(7), [sent(7), new, sent(2, number=3)], NOW)
    assert found == Minute(unknown=-9), "either of the seven, and the two"
    found = blame(Seen(5), [sent(5), new, sent(2, number=3)], NOW)
    assert [(finding.blame, finding.row.number) for finding in found.findings] == [("lacking", 3)]
    assert blame(Seen(8), [new], NOW) == Minute(foreign=1)
    again = structs.replace(new, attempt=2)
    parked = [sent(9, "parked", number=3), sent(2, "parked", number=4)]
    assert blame(Seen(9), [again, *parked], NOW) == Minute(unknown=2), "the nine, or the seven and the two"


def test_a_minute_with_rows_in_doubt_is_left_to_settling() -> None:
    assert blame(Seen(12), [sent(7), sent(5, "in_doubt", number=2)], NOW) == Minute()
    assert blame(Seen(7), [sent(7), sent(5, "in_doubt", number=2)], NOW) == Minute()
    assert blame(Seen(6), [sent(7), sent(5, "in_doubt", number=2)], NOW) == Minute(unknown=-1)
