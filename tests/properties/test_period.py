"""Periods against a slow model on datetime, and the properties that counting relies on."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.catalogue.model import PERIODS, Period
from sidecar.catalogue.period import bounds

CENTURY_S = 4_102_444_800  # 2100-01-01, not a leap year
instants = st.integers(min_value=0, max_value=2 * CENTURY_S)
anchors = st.integers(min_value=0, max_value=CENTURY_S)
intervals = st.sampled_from([1, 2, 3, 5, 12, 36])


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def text(instant_s: int) -> str:
    return datetime.fromtimestamp(instant_s, UTC).isoformat().removesuffix("+00:00")


def renewal(anchor: datetime, months: int) -> datetime:
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def model(anchor_s: int, at_s: int, interval_months: int) -> tuple[int, int]:
    """Walk from renewal to renewal, counted from the anchor, until the instant is inside."""
    anchor, now = (datetime.fromtimestamp(value, UTC) for value in (anchor_s, at_s))
    count = ((now.year - anchor.year) * 12 + now.month - anchor.month) // interval_months - 2
    while renewal(anchor, (count + 1) * interval_months) <= now:
        count += 1
    start, end = (renewal(anchor, number * interval_months) for number in (count, count + 1))
    return int(start.timestamp()), int(end.timestamp())


@given(at_s=instants, anchor_s=anchors, interval_months=intervals)
@example(at_s=at("2024-02-29T12:00:00"), anchor_s=at("2023-01-31T12:00:00"), interval_months=1)
@example(at_s=at("2100-02-28T00:00:00"), anchor_s=at("2000-02-29T00:00:00"), interval_months=12)
def test_billing_periods_agree_with_the_calendar(at_s: int, anchor_s: int, interval_months: int) -> None:
    assert bounds("billing", at_s, anchor_s, interval_months) == model(anchor_s, at_s, interval_months)


@given(at_s=instants)
def test_months_agree_with_the_calendar(at_s: int) -> None:
    assert bounds("month", at_s) == model(0, at_s, 1)


@given(period=st.sampled_from(PERIODS), at_s=instants, anchor_s=anchors, interval_months=intervals)
def test_a_period_contains_its_instant_and_touches_its_neighbours(
    period: Period, at_s: int, anchor_s: int, interval_months: int
) -> None:
    start_s, end_s = bounds(period, at_s, anchor_s, interval_months)
    assert start_s <= at_s < end_s
    assert bounds(period, start_s, anchor_s, interval_months) == (start_s, end_s)
    assert bounds(period, end_s - 1, anchor_s, interval_months) == (start_s, end_s)
    if period != "lifetime":
        assert bounds(period, end_s, anchor_s, interval_months)[0] == end_s
        assert bounds(period, start_s - 1, anchor_s, interval_months)[1] == start_s


@given(period=st.sampled_from(["hour", "day", "month", "lifetime"]), at_s=instants)
def test_calendar_periods_start_on_a_full_hour(period: Period, at_s: int) -> None:
    start_s, end_s = bounds(period, at_s)
    assert start_s % 3_600 == 0
    assert end_s % 3_600 == 0 or period == "lifetime"


@given(at_s=instants, anchor_s=anchors)
def test_billing_periods_keep_the_time_of_day_and_the_day_where_there_is_one(at_s: int, anchor_s: int) -> None:
    anchor = datetime.fromtimestamp(anchor_s, UTC)
    start = datetime.fromtimestamp(bounds("billing", at_s, anchor_s)[0], UTC)
    assert start.time() == anchor.time()
    assert start.day == min(anchor.day, calendar.monthrange(start.year, start.month)[1])


@pytest.mark.parametrize(
    ("year", "ends"),
    [
        (2023, ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31"]),
        (2024, ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30", "2024-05-31"]),
    ],
)
def test_an_anchor_on_the_31st_comes_back_to_it(year: int, ends: list[str]) -> None:
    anchor_s = at(f"{year}-01-31T09:30:00")
    for first, second in pairwise(f"{day}T09:30:00" for day in ends):
        start_s, end_s = bounds("billing", at(first), anchor_s)
        assert (text(start_s), text(end_s)) == (first, second)
        assert bounds("billing", at(second) - 1, anchor_s) == (start_s, end_s)


def test_periods_before_the_anchor_are_counted_from_it_too() -> None:
    anchor_s = at("2024-03-31T00:00:00")
    start_s, end_s = bounds("billing", at("2024-02-10T00:00:00"), anchor_s)
    assert (text(start_s), text(end_s)) == ("2024-01-31T00:00:00", "2024-02-29T00:00:00")


def test_a_month_is_no_thirty_days() -> None:
    start_s, end_s = bounds("month", at("2026-02-11T10:00:00"))
    assert (text(start_s), text(end_s)) == ("2026-02-01T00:00:00", "2026-03-01T00:00:00")
    assert timedelta(seconds=end_s - start_s).days == 28
