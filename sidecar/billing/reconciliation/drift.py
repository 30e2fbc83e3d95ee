"""Ledger, outbox and Stripe's summaries of one customer and meter, compared over days and billing periods. Pure.

Guarantees: the parts of a difference add up to it exactly; a part is called explained only when rows of the outbox
            stand for it. What Stripe has is compared with the rows by their timestamps, so usage that is billed in
            another period than it was counted in is no drift of either. A period turns at its second: what is known
            to have arrived in the minute of that is taken for the period whose invoice has it, not for the next one,
            whose summary begins with that minute.
Gives up:   what a float cannot show: beyond 2**53 base units sums that differ by less are taken as equal.
Source:     https://docs.stripe.com/api/billing/meter-event-summary/list (floats, minute-aligned).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Context, Decimal
from typing import Literal

from msgspec import Struct

from sidecar.billing.outbox.delta import MINUTE_S
from sidecar.catalogue.period import DAY_S, bounds

LATE = "late"  # counted here, billed in another period, or the other way round
WAITING = "waiting"  # on its way: not decided, or decided and not sent
IN_DOUBT = "in_doubt"  # sent, and nobody knows yet whether it arrived
PARKED = "parked"  # set aside; an operator decides
UNBILLABLE = "unbillable"  # of a time that nobody pays for, and too old for Stripe when it came
RECENT = "recent"  # confirmed so lately that summaries need not show it
MINUTE_UNKNOWN = "minute_unknown"  # rows share a minute, or were adopted: which of them differs cannot be told
UNEXPLAINED = "unexplained"
KINDS = (LATE, WAITING, IN_DOUBT, PARKED, UNBILLABLE, RECENT, MINUTE_UNKNOWN, UNEXPLAINED)
MATTERS = (MINUTE_UNKNOWN, UNEXPLAINED)  # what does not go away by itself, and is no operator's known matter yet

BLUR_ULPS = 4
_EXACT = Context(prec=60)

SpanKind = Literal["day", "period"]


class Span(Struct, frozen=True):
    """A day of UTC or a billing period, cut to what is billed; whole minutes. ``number``: of the day or period."""

    kind: SpanKind
    number: int
    from_s: int
    to_s: int


class Windows(Struct, frozen=True):
    """What the ledger has in windows of one day and period; ``period`` is its place among the lane's periods.

    ``undecided`` is what no row of the outbox stands for yet; of it, ``missed`` is what the outbox will not look at
    by itself, since ``missed_from_s``. ``beyond`` is what rows stand for and no window has.
    """

    day_s: int
    period: int
    ledger: int
    undecided: int = 0
    missed: int = 0
    missed_from_s: int = 0
    beyond: int = 0


class Rows(Struct, frozen=True):
    """What rows of the outbox stand for, by where their window and where their timestamp lies.

    ``shown_period`` is the one whose summary has them: the next, when their minute is the one a period turns in.
    """

    day_s: int
    period: int
    at_day_s: int
    at_period: int
    shown_period: int
    state: Literal["delivered", "recent", "waiting", "in_doubt", "parked", "unbillable"]
    amount: int


class Lane(Struct, frozen=True, kw_only=True):
    """One customer and meter as the ledger has it. ``from_s``: since when it is billed.

    ``periods`` are the starts of its billing periods, the latest last. ``distrusted``: the ledger was restored from a
    backup, and this lane was not compared with Stripe since.
    """

    tenant: str
    metric: str
    customer: str
    meters: tuple[str, ...]
    scale: int
    from_s: int
    periods: tuple[int, ...]
    distrusted: bool = False
    windows: tuple[Windows, ...] = ()
    rows: tuple[Rows, ...] = ()


class Seen(Struct, frozen=True):
    """What Stripe shows, in base units; ``blur`` is how much its float cannot tell."""

    amount: int = 0
    blur: int = 0


class Line(Struct, frozen=True, kw_only=True):
    """One span compared. ``explained`` has what each kind of explanation stands for; together they are the drift."""

    tenant: str
    metric: str
    span: SpanKind
    from_s: int
    to_s: int
    ledger: int
    delivered: int
    waiting: int
    in_doubt: int
    parked: int
    late: int
    stripe: int
    explained: dict[str, int]

    @property
    def drift(self) -> int:
        return self.stripe - self.ledger

    @property
    def unexplained(self) -> int:
        """What is left to explain."""
        return sum(self.explained.get(kind, 0) for kind in MATTERS)

    @property
    def matters(self) -> bool:
        """Whether somebody has to look: nothing here goes away by itself."""
        return any(self.explained.get(kind) for kind in MATTERS)


def period_starts(since_s: int, now_s: int, anchor_s: int, interval_months: int) -> tuple[int, ...]:
    """Starts of the billing periods from the one that holds ``since_s`` to the running one."""
    found = []
    at_s = since_s
    while at_s <= now_s:
        start_s, at_s = bounds("billing", at_s, anchor_s, interval_months)
        found.append(start_s)
    return tuple(found)


def spans(lane: Lane, since_s: int, now_s: int) -> list[Span]:
    """What is compared of a lane: every day since ``since_s``, and every period that reaches into that time."""
    from_s = lane.from_s - lane.from_s % MINUTE_S
    days = range(max(since_s, from_s) // DAY_S * DAY_S, now_s + 1, DAY_S)
    found = [Span("day", day_s, max(day_s, from_s), day_s + DAY_S) for day_s in days]
    starts = [start_s - start_s % MINUTE_S for start_s in lane.periods]
    end_s = now_s // DAY_S * DAY_S + DAY_S
    for number, (start_s, next_s) in enumerate(zip(starts, (*starts[1:], end_s), strict=True)):
        if max(start_s, from_s) < next_s and next_s > since_s:
            found.append(Span("period", number, max(start_s, from_s), next_s))
    return found


def used(lane: Lane, span: Span) -> bool:
    """Whether the ledger knows of anything in the span."""
    return any(_counted_in(part, span) for part in lane.windows) or any(
        _counted_in(part, span) or _billed_in(part, span) or _shown_in(part, span) for part in lane.rows
    )


def seen(values: Iterable[float], scale: int) -> Seen:
    """Summaries in base units. A float of more digits than it can hold is blurred by as much."""
    total = Decimal(0)
    blur = 0
    for value in values:
        total = _EXACT.add(total, Decimal(repr(value)))
        blur += int(Decimal(BLUR_ULPS * math.ulp(value)).scaleb(scale, _EXACT))
    return Seen(int(total.scaleb(scale, _EXACT).to_integral_value(context=_EXACT)), blur)


def compare(lane: Lane, span: Span, shown: Seen) -> Line:
    """Compare one span, and explain what differs."""
    windows = [part for part in lane.windows if _counted_in(part, span)]
    ledger = sum(part.ledger for part in windows)
    undecided = sum(part.undecided for part in windows)
    beyond = sum(part.beyond for part in windows)
    here = dict.fromkeys(("delivered", "recent", "waiting", "in_doubt", "parked", "unbillable"), 0)
    late, stripe = 0, shown.amount
    for rows in lane.rows:
        if _billed_in(rows, span):
            here[rows.state] += rows.amount
        if rows.state == "delivered":
            stripe += rows.amount * (_billed_in(rows, span) - _shown_in(rows, span))
        late += rows.amount * (_billed_in(rows, span) - _counted_in(rows, span))
    confirmed, unsure = here["delivered"] + here["recent"], here["in_doubt"]

    # What Stripe has beyond what is sure belongs to rows whose fate or visibility is open, as far as they go.
    rest = stripe - here["delivered"]
    recent = _within(rest, here["recent"])
    arrived = _within(rest - recent, unsure)
    rest -= recent + arrived
    if abs(rest) <= shown.blur:
        stripe, rest = stripe - rest, 0
    if lane.distrusted:
        # The forwarder compares this lane with Stripe before it sends anything for it again.
        arrived, rest = arrived + rest, 0
    parts = {
        LATE: late,
        WAITING: -undecided - here["waiting"],
        IN_DOUBT: arrived - unsure,
        PARKED: -here["parked"],
        UNBILLABLE: -here["unbillable"],
        RECENT: recent - here["recent"],
        UNEXPLAINED: rest + beyond,
    }
    return Line(
        tenant=lane.tenant,
        metric=lane.metric,
        span=span.kind,
        from_s=span.from_s,
        to_s=span.to_s,
        ledger=ledger,
        delivered=confirmed,
        waiting=undecided + here["waiting"],
        in_doubt=unsure,
        parked=here["parked"],
        late=late,
        stripe=stripe,
        explained={kind: amount for kind, amount in parts.items() if amount},
    )


def unaccounted(lane: Lane, span: Span, line: Line) -> int:
    """What Stripe has more (or less) than the rows can account for; the rest of what is unexplained is the ledger's."""
    return line.explained.get(UNEXPLAINED, 0) - sum(part.beyond for part in lane.windows if _counted_in(part, span))


def missed_from(lane: Lane) -> int | None:
    """The first hour with usage that the outbox will not look at by itself; None when there is none."""
    return min((part.missed_from_s for part in lane.windows if part.missed), default=None)


def _within(amount: int, most: int) -> int:
    return min(max(amount, 0), most)


def _counted_in(part: Windows | Rows, span: Span) -> bool:
    return (part.day_s if span.kind == "day" else part.period) == span.number


def _billed_in(rows: Rows, span: Span) -> bool:
    """Where rows are billed; those that may have arrived are looked for where they would show."""
    if rows.state in ("recent", "in_doubt"):
        return _shown_in(rows, span)
    return (rows.at_day_s if span.kind == "day" else rows.at_period) == span.number


def _shown_in(rows: Rows, span: Span) -> bool:
    return (rows.at_day_s if span.kind == "day" else rows.shown_period) == span.number


def differences(lines: Sequence[Line]) -> list[Line]:
    """Those in which something differs, also where differences cancel each other out."""
    return [line for line in lines if line.explained]
