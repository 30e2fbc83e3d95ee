"""Billing periods: an anchor and an interval, in UTC.

Guarantees: a day of month that a month does not have becomes its last day, without moving the anchor.
Source: https://docs.stripe.com/billing/subscriptions/billing-cycle
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime

DAY_S = 86_400
SPAN_S = {"day": DAY_S, "week": 7 * DAY_S, "month": 31 * DAY_S, "year": 366 * DAY_S}
MONTHS = {"month": 1, "year": 12}


def step(anchor_s: int, interval: str, count: int, number: int) -> int:
    """The start of the period that is ``number`` periods after the anchor."""
    months = MONTHS.get(interval)
    if months is None:
        return anchor_s + SPAN_S[interval] * count * number
    anchor = datetime.fromtimestamp(anchor_s, UTC)
    total = anchor.year * 12 + anchor.month - 1 + months * count * number
    year, month = divmod(total, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return int(anchor.replace(year=year, month=month + 1, day=day).timestamp())


def period(anchor_s: int, interval: str, count: int, instant_s: int) -> tuple[int, int]:
    """The period in which an instant lies."""
    number = (instant_s - anchor_s) // (SPAN_S[interval] * count)
    while step(anchor_s, interval, count, number) > instant_s:
        number -= 1
    while step(anchor_s, interval, count, number + 1) <= instant_s:
        number += 1
    return step(anchor_s, interval, count, number), step(anchor_s, interval, count, number + 1)
