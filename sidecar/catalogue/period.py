"""Periods of limits: from an instant to the start and end of the period that holds it, in UTC.

Guarantees: periods of one kind are contiguous, never overlap, and contain the instant asked for. Calendar periods of
            an hour or longer start on a full hour, so every hourly window lies in exactly one of them. A billing
            period is always counted from the original anchor: one that began on 31 January renews on 28 or 29
            February and on 31 March again, at the anchor's time of day.
Gives up:   leap seconds, as Unix time does, and instants outside the years 1 to 9999.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache

from sidecar.catalogue.model import Period

LIFETIME_END_S = 2**40
DAY_S = 86_400
_FIXED_S: dict[str, int] = {"second": 1, "minute": 60, "hour": 3_600, "day": DAY_S}
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DATES_KEPT = 4_096  # requests and their tenants' anchors are of a few years' days


def bounds(period: Period, at_s: int, anchor_s: int = 0, interval_months: int = 1) -> tuple[int, int]:
    """Start (inclusive) and end (exclusive) of the period that holds ``at_s``, in unix seconds.

    ``anchor_s`` and ``interval_months`` matter to "billing" only: its periods start at the anchor and every
    ``interval_months`` after and before it.
    """
    length_s = _FIXED_S.get(period)
    if length_s is not None:
        start_s = at_s - at_s % length_s
        return start_s, start_s + length_s
    if period == "lifetime":
        return 0, LIFETIME_END_S
    if period == "month":
        return _anchored(at_s, 0, 1)
    return _anchored(at_s, anchor_s, interval_months)


def _anchored(at_s: int, anchor_s: int, interval_months: int) -> tuple[int, int]:
    anchor_day, time_of_day_s = divmod(anchor_s, DAY_S)
    anchor_month, day = _month(anchor_day)
    now_month, _ = _month(at_s // DAY_S)
    month = anchor_month + (now_month - anchor_month) // interval_months * interval_months
    start_s = _in_month(month, day) + time_of_day_s
    if start_s > at_s:
        # The period that starts in this very month has not begun yet: the one before it is still running.
        return _in_month(month - interval_months, day) + time_of_day_s, start_s
    return start_s, _in_month(month + interval_months, day) + time_of_day_s


@lru_cache(_DATES_KEPT)
def _month(day: int) -> tuple[int, int]:
    """The month (counted from year 0) of a day since 1970, and which day of it that is."""
    found = date.fromordinal(day + _EPOCH_ORDINAL)
    return found.year * 12 + found.month - 1, found.day


@lru_cache(_DATES_KEPT)
def _in_month(month: int, day: int) -> int:
    """When a day of a month (counted from year 0) begins, or the month's last day when it is shorter."""
    year, index = divmod(month, 12)
    last = _MONTH_DAYS[index]
    if index == 1 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0):
        last = 29
    ordinal = date(year, index + 1, min(day, last)).toordinal()
    return (ordinal - _EPOCH_ORDINAL) * DAY_S
