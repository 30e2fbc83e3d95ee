from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.billing.outbox.delta import (
    AGE_MAX_S,
    AGE_SENT_MAX_S,
    NEVER_S,
    Place,
    Terms,
    Window,
    idempotency_key,
    identifier,
    identifier_of,
    moment,
    pieces,
    place,
    value,
)
from sidecar.billing.outbox.outbox import turn

HOUR_S = 3_600
DAY_S = 86_400
ANCHOR_S = 1_793_491_200 + 30 * 60  # 2026-11-01 00:30 UTC
TERMS = Terms(ANCHOR_S, 1, HOUR_S)
ENDS_S = ANCHOR_S + 30 * DAY_S


def window(hour_s: int, period_s: int = ANCHOR_S) -> Window:
    return Window("t", "m", period_s, hour_s // HOUR_S * HOUR_S)


def test_a_delta_of_the_running_hour_lies_between_its_start_and_now() -> None:
    now_s = ANCHOR_S + 5 * DAY_S + 700
    hour_s = now_s // HOUR_S * HOUR_S
    assert place(window(now_s), TERMS, now_s) == Place(hour_s, now_s, ENDS_S + HOUR_S, late=False)


def test_an_hour_in_which_a_period_turns_is_cut_there() -> None:
    first = place(window(ANCHOR_S), TERMS, ANCHOR_S + DAY_S)
    assert first is not None
    assert (first.from_s, first.to_s) == (ANCHOR_S, ANCHOR_S + 30 * 60 - 1)
    last = place(window(ENDS_S), TERMS, ENDS_S + 60)
    assert last is not None
    assert (last.from_s, last.to_s, last.deadline_s, last.late) == (ENDS_S - 1_800, ENDS_S - 1, ENDS_S + HOUR_S, False)


@pytest.mark.parametrize(
    ("after_s", "late"), [(0, False), (HOUR_S - 61, False), (HOUR_S - 60, True), (50 * HOUR_S, True)]
)
def test_usage_is_late_when_its_period_is_about_to_close(after_s: int, late: bool) -> None:
    now_s = ENDS_S + after_s
    found = place(window(ENDS_S - 5 * HOUR_S), TERMS, now_s)
    assert found is not None
    assert found.late == late
    assert (found.from_s >= ENDS_S) == late
    assert found.to_s <= now_s


def test_usage_too_old_to_be_sent_moves_into_the_running_period() -> None:
    yearly = Terms(ANCHOR_S, 12, HOUR_S)
    now_s = ANCHOR_S + 100 * DAY_S
    young, old = now_s - AGE_SENT_MAX_S + HOUR_S, now_s - AGE_SENT_MAX_S - 2 * HOUR_S
    found = [place(window(at_s), yearly, now_s) for at_s in (young, old)]
    assert [item.late for item in found if item] == [False, True]
    assert found[1] is not None
    assert found[1].from_s == now_s - HOUR_S


def test_a_window_of_a_writer_whose_clock_runs_ahead_waits() -> None:
    assert place(window(ANCHOR_S + 2 * HOUR_S), TERMS, ANCHOR_S + HOUR_S) is None


def test_a_period_that_a_new_anchor_cut_short_ends_where_the_new_one_begins() -> None:
    moved = Terms(ANCHOR_S + 10 * DAY_S, 1, HOUR_S)
    now_s = ANCHOR_S + 10 * DAY_S + 600
    found = place(window(now_s - 2 * HOUR_S), moved, now_s)
    assert found is not None
    assert (found.late, found.deadline_s) == (False, ANCHOR_S + 10 * DAY_S + HOUR_S)
    assert found.to_s < ANCHOR_S + 10 * DAY_S
    later = place(window(now_s - 2 * HOUR_S), moved, now_s + HOUR_S)
    assert later is not None
    assert later.late


def changed(since_s: int, anchor_s: int = ANCHOR_S) -> Terms:
    return Terms(anchor_s, 1, HOUR_S, since_s)


def test_a_delta_never_lies_before_the_items_that_bill_it() -> None:
    since_s = ANCHOR_S + 5 * DAY_S + 130
    hour_s = since_s // HOUR_S * HOUR_S
    found = place(window(since_s), changed(since_s), since_s + 20)
    assert found == Place(since_s, since_s + 20, ENDS_S + HOUR_S, late=False)
    assert moment(found, {(since_s + 20) // 60}) == since_s, "inside of its minute"
    before = place(window(hour_s - HOUR_S), changed(since_s), since_s + 20)
    assert before == Place(since_s, since_s + 20, ENDS_S + HOUR_S, late=True)
    assert place(window(since_s), changed(since_s), since_s - 1) is None, "Stripe's clock is ahead"


def test_items_that_began_with_the_period_leave_the_period_before_alone() -> None:
    for since_s in (ENDS_S, ENDS_S + 600):
        found = place(window(ENDS_S - HOUR_S), changed(since_s), ENDS_S + 700)
        assert found is not None
        assert (found.late, found.to_s < ENDS_S) == (False, True), (
            "its invoice is open, and the items of then are on it"
        )


def test_a_period_that_a_change_cut_short_has_no_invoice_to_come() -> None:
    since_s = ANCHOR_S + 10 * DAY_S
    found = place(window(since_s - HOUR_S), changed(since_s, since_s), since_s + 600)
    assert found == Place(since_s, since_s + 600, since_s + 30 * DAY_S + HOUR_S, late=True)


def unpaid(bills_from_s: int, months: int = 1) -> Terms:
    return Terms(ANCHOR_S, months, HOUR_S, 0, bills_from_s)


def test_usage_that_nobody_pays_for_stays_in_its_own_time_when_it_is_late() -> None:
    hour_s = (ENDS_S - 5 * HOUR_S) // HOUR_S * HOUR_S
    now_s = ENDS_S + 50 * HOUR_S
    for bills_from_s in (NEVER_S, ENDS_S):
        found = place(window(hour_s), unpaid(bills_from_s), now_s)
        assert found == Place(hour_s, hour_s + HOUR_S - 1, hour_s + HOUR_S - 1 + AGE_MAX_S, late=False)
    ends = place(window(hour_s), unpaid(hour_s + 900), now_s)
    assert ends is not None
    assert ends.to_s == hour_s + 899, "what follows is paid for"
    paid = place(window(hour_s), unpaid(hour_s), now_s)
    assert paid is not None
    assert paid.late


def test_usage_that_nobody_pays_for_goes_nowhere_when_stripe_does_not_take_it_where_it_belongs() -> None:
    now_s = ANCHOR_S + 100 * DAY_S
    for months in (1, 12):
        found = place(window(now_s - 40 * DAY_S, now_s - 70 * DAY_S), unpaid(NEVER_S, months), now_s)
        assert found is not None
        assert found.unbillable


def test_usage_of_a_trial_is_sent_as_any_other_while_its_period_is_open() -> None:
    now_s = ENDS_S + 60
    assert place(window(ENDS_S - HOUR_S), unpaid(ENDS_S), now_s) == place(window(ENDS_S - HOUR_S), TERMS, now_s)


def test_each_delta_gets_the_latest_free_minute_and_shares_only_when_none_is_left() -> None:
    where = Place(7_200 + 90, 7_200 + 250, 0, late=False)
    assert moment(where, set()) == 7_200 + 240
    assert moment(where, {124}) == 7_200 + 180
    assert moment(where, {124, 123, 122}) == 7_200 + 90
    assert moment(where, {124, 123, 122, 121}) == 7_200 + 240


@pytest.mark.parametrize(
    ("amount", "scale", "parts"),
    [
        (0, 0, []),
        (1, 0, [1]),
        (999_999_999_999_999, 0, [999_999_999_999_999]),
        (1_000_000_000_000_000, 0, [999_999_999_999_999, 1]),
        (2_000_000_000_000_000, 0, [999_999_999_999_999] * 2 + [2]),
        (1_234_567_890_123_456, 3, [1_234_567_890_123_450, 6]),
        (10**17, 3, [10**17]),
        (10**18, 9, [10**18]),
        (9_223_372_036_854_775_807, 9, [9_223_372_036_854_770_000, 5_807]),
    ],
)
def test_no_piece_has_more_than_fifteen_digits(amount: int, scale: int, parts: list[int]) -> None:
    assert pieces(amount, scale) == parts
    assert sum(parts) == amount


def test_values_are_exact_and_have_no_needless_digits() -> None:
    assert format(value(1_500, 3), "f") == "1.5"
    assert format(value(10**18, 9), "f") == "1000000000"
    assert value(123_456_789_012_345, 9) == Decimal("123456.789012345")


def test_identifiers_differ_in_everything_that_makes_a_delta_and_in_nothing_else() -> None:
    base = ("ledger", Window("t", "m", 0, 3_600), 1, 1)
    others = [
        ("other", *base[1:]),
        ("ledger", Window("t2", "m", 0, 3_600), 1, 1),
        ("ledger", Window("t", "m2", 0, 3_600), 1, 1),
        ("ledger", Window("t", "m", 1, 3_600), 1, 1),
        ("ledger", Window("t", "m", 0, 7_200), 1, 1),
        ("ledger", Window("t", "m", 0, 3_600), 2, 1),
        ("ledger", Window("t", "m", 0, 3_600), 1, 2),
        ("ledger", Window("t", "m", 0, 360), 1, 1),
    ]
    names = [identifier(*arguments) for arguments in (base, *others)]
    assert len(set(names)) == len(names)
    assert identifier(*base) == names[0]
    assert all(len(name) == 32 and name.isalnum() for name in names)


def test_an_idempotency_key_leads_back_to_its_identifier() -> None:
    assert idempotency_key("abc", 0) == "abc"
    assert idempotency_key("abc", 2) == "abc-2"
    assert [identifier_of(key) for key in ("abc", "abc-2")] == ["abc", "abc"]


def test_shards_take_turns_and_installations_begin_at_other_seconds() -> None:
    turns = [turn("one", shard, 16, 300, 1_000_000) for shard in range(16)]
    assert len(set(turns)) == 16
    assert all(1_000_000 - 300 < began_s <= 1_000_000 for began_s in turns)
    assert len({turn(f"ledger-{n}", 0, 16, 300, 1_000_000) for n in range(50)}) > 25
    assert len({turn(f"ledger-{n}", 0, 16, 300, 3_600 * 300) % 3_600 for n in range(50)}) > 25
