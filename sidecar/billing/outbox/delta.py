"""A delta of a window on its way to Stripe: where in time it lies, how it is cut, what it is called. Pure.

Guarantees: the same delta of the same ledger always has the same identifier; a timestamp lies in the window and in its
            billing period, or, for usage that is late, in the period that is running; never in the future, never
            within a day of the age at which Stripe refuses it, and never before the items that bill it began.
            Usage of a time that nobody pays for never comes to lie in one that somebody does because it is late.
            Pieces add up to the whole, each of at most 15 digits.
Gives up:   a minute of its own when all of its hour are taken.
Source:     https://docs.stripe.com/api/billing/meter-event/create (35 days back, identifiers up to 100 characters).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Container
from decimal import Decimal

from msgspec import Struct

from sidecar.catalogue.amount import format_amount, to_decimal
from sidecar.catalogue.period import bounds

DIGITS_MAX = 15
AGE_MAX_S = 35 * 86_400
NEVER_S = 2**53
AGE_SENT_MAX_S = AGE_MAX_S - 86_400  # a day for retries and settling
LATE_SPREAD_S = 3_600  # late deltas look for a free minute this far back
GUARD_S = 60
MINUTE_S = 60
HOUR_S = 3_600
_IDENTIFIER_BYTES = 20


class Window(Struct, frozen=True):
    """What one delta is of. ``period_s`` is the start of the billing period, ``hour_s`` of the hour."""

    tenant: str
    metric: str
    period_s: int
    hour_s: int


class Terms(Struct, frozen=True):
    """What decides where a delta lies, beside its window: the tenant's billing periods, and how long one stays open.

    ``items_since_s``: since when its subscription has the metered items it has now, 0 when they came with it. Stripe
    counts nothing earlier for them, and what the items before them had was billed when they went.
    ``bills_from_s``: the first moment of the window, or the first one after it, at which the tenant pays for its usage:
    a subscription is there, and not in its trial. NEVER_S when there is none.
    """

    anchor_s: int
    interval_months: int
    close_delay_s: int
    items_since_s: int = 0
    bills_from_s: int = 0

    @property
    def guard_s(self) -> int:
        """How long before the deadline nothing new is sent any more: it might arrive after it."""
        return min(GUARD_S, self.close_delay_s // 10)


class Place(Struct, frozen=True):
    """Where a delta's timestamp may lie, both ends included; until ``deadline_s`` it is on its period's invoice.

    ``unbillable``: nowhere. Nobody pays for it, and Stripe does not take events that lie where it would belong.
    """

    from_s: int
    to_s: int
    deadline_s: int
    late: bool
    unbillable: bool = False


def identifier(ledger_id: str, window: Window, number: int, attempt: int) -> str:
    """The identifier of a delta, which is its idempotency key as well: 32 lower-case letters and digits."""
    parts = (ledger_id, window.tenant, window.metric, window.period_s, window.hour_s, number, attempt)
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=_IDENTIFIER_BYTES).digest()
    return base64.b32encode(digest).decode().lower()


def idempotency_key(identifier: str, replays: int) -> str:
    """The key of a call: another one once Stripe has kept an error of its own under the one before.

    Stripe repeats a kept error for 24 h whatever became of the event; the identifier alone prevents counting twice.
    """
    return f"{identifier}-{replays}" if replays else identifier


def identifier_of(key: str) -> str:
    """The identifier that an idempotency key was made of."""
    return key.partition("-")[0]


def pieces(amount: int, scale: int) -> list[int]:
    """Cut an amount into parts whose decimals have at most 15 digits, zeros before the point counted; largest first."""
    largest = 10 ** (DIGITS_MAX + scale) - 10**scale  # fifteen nines, in base units
    found = []
    while amount:
        part = min(amount, largest)
        if _digits(part, scale) > DIGITS_MAX:
            whole_digits = len(str(part // 10**scale))
            part -= part % 10 ** (scale - (DIGITS_MAX - whole_digits))
        found.append(part)
        amount -= part
    return found


def _digits(amount: int, scale: int) -> int:
    return sum(character.isdigit() for character in format_amount(amount, scale))


def value(amount: int, scale: int) -> Decimal:
    """What Stripe is told: whole units of the metric, exact."""
    return to_decimal(amount, scale)


def place(window: Window, terms: Terms, now_s: int) -> Place | None:
    """Where the delta of a window may lie now; None while that is in the future (a clock elsewhere runs ahead)."""
    begins_s, since_s = max(window.hour_s, window.period_s), terms.items_since_s
    if max(begins_s, since_s) > now_s:
        return None
    current_s, current_end_s = bounds("billing", now_s, terms.anchor_s, terms.interval_months)
    if window.period_s >= current_s:
        ends_s = current_end_s
    else:
        # By the anchor that is in force now; a period that a new anchor cut short ended when the current one began.
        ends_s = min(current_s, bounds("billing", begins_s, terms.anchor_s, terms.interval_months)[1])
    deadline_s = ends_s + terms.close_delay_s
    from_s = max(begins_s, now_s - AGE_SENT_MAX_S)
    if since_s < ends_s or _cut_short(window, terms):
        from_s = max(from_s, since_s)
    to_s = min(window.hour_s + HOUR_S, ends_s, now_s + 1) - 1
    if from_s <= to_s and now_s < deadline_s - terms.guard_s:
        return Place(from_s, to_s, deadline_s, late=False)
    if terms.bills_from_s > begins_s:
        return _unpaid(window, terms, now_s, ends_s)
    late_from_s = max(current_s, since_s, now_s - LATE_SPREAD_S)
    return Place(late_from_s, now_s, current_end_s + terms.close_delay_s, late=True)


def _unpaid(window: Window, terms: Terms, now_s: int, ends_s: int) -> Place:
    """Where usage lies that came too late for its period, of a time that nobody pays for: in its own time, or nowhere.

    There it is part of Stripe's total, and of no invoice: that of its period is final or never was.
    """
    begins_s = max(window.hour_s, window.period_s)
    to_s = min(window.hour_s + HOUR_S, ends_s, terms.bills_from_s, now_s + 1) - 1
    from_s = max(begins_s, now_s - AGE_SENT_MAX_S)
    if from_s > to_s:
        return Place(begins_s, begins_s, begins_s + AGE_MAX_S, late=False, unbillable=True)
    return Place(from_s, to_s, to_s + AGE_MAX_S, late=False)


def _cut_short(window: Window, terms: Terms) -> bool:
    """Whether a new anchor ended the window's period: unlike at a period's own end, no invoice of it is still open."""
    begins_s = max(window.hour_s, window.period_s)
    return bounds("billing", begins_s, terms.anchor_s, terms.interval_months)[0] != window.period_s


def moment(where: Place, taken: Container[int]) -> int:
    """The latest minute of a place that no other delta of the lane has (``taken``: unix seconds // 60), as a timestamp.

    When all are taken, the latest one is shared: settling then has to tell the sums of that minute apart.
    """
    last = where.to_s // MINUTE_S
    minute = next((m for m in range(last, where.from_s // MINUTE_S - 1, -1) if m not in taken), last)
    return max(minute * MINUTE_S, where.from_s)
