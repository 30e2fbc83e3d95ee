"""Usage that was told: events, their identifiers, and sums per customer and meter.

Guarantees: an identifier counts once per meter within 24 hours; sums are exact decimals.
Gives up:   nothing is ever forgotten, so that tests can ask for everything.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from decimal import Decimal
from typing import Any

from msgspec import Struct

IDENTIFIER_S = 86_400
REFUSALS_MAX = 200_000


class MeterEvent(Struct):
    """One accepted event."""

    identifier: str
    meter: str
    customer: str
    value: Decimal
    timestamp: int
    created: int
    created_ms: int
    source: str
    cancelled: bool = False


class Refusal(Struct, frozen=True):
    """One event that was refused, at once or in an error report."""

    identifier: str
    event_name: str
    customer: str
    value: str
    code: str
    message: str
    created: int
    source: str


class Series:
    """The events of one customer on one meter, with their sums per second."""

    __slots__ = ("events", "seconds")

    def __init__(self) -> None:
        self.events: list[MeterEvent] = []
        self.seconds: dict[int, Decimal] = {}

    def add(self, event: MeterEvent) -> None:
        self.events.append(event)
        if not event.cancelled:
            self.seconds[event.timestamp] = self.seconds.get(event.timestamp, Decimal()) + event.value

    def cancel(self, event: MeterEvent) -> None:
        if not event.cancelled:
            event.cancelled = True
            self.seconds[event.timestamp] -= event.value


class Metering:
    """All usage of an account."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], Series] = {}
        self.identifiers: dict[tuple[str, str], MeterEvent] = {}
        self.refused: deque[Refusal] = deque(maxlen=REFUSALS_MAX)
        # How often each identifier came in a call, whatever became of it.
        self.came: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()

    def exists(self, meter: str, identifier: str, now_s: int) -> bool:
        known = self.identifiers.get((meter, identifier))
        return known is not None and now_s - known.created < IDENTIFIER_S

    def add(self, event: MeterEvent) -> None:
        self.series.setdefault((event.meter, event.customer), Series()).add(event)
        self.identifiers[event.meter, event.identifier] = event
        self.accepted[event.identifier] += 1

    def cancel(self, event: MeterEvent) -> None:
        self.series[event.meter, event.customer].cancel(event)

    def events(self) -> list[MeterEvent]:
        """Every event in the order of arrival."""
        found = [event for series in self.series.values() for event in series.events]
        found.sort(key=lambda event: event.created_ms)
        return found

    def total(self, meter: str, customer: str, formula: str, start_s: int, end_s: int, before_ms: int = 0) -> Decimal:
        """What was used from start until before end; ``before_ms`` leaves out what arrived later."""
        series = self.series.get((meter, customer))
        if series is None:
            return Decimal()
        if formula == "sum":
            seconds = series.seconds
            found = sum((value for second, value in seconds.items() if start_s <= second < end_s), Decimal())
            if before_ms:
                for event in reversed(series.events):
                    if event.created_ms <= before_ms:
                        break
                    if start_s <= event.timestamp < end_s and not event.cancelled:
                        found -= event.value
            return found
        events = [
            event
            for event in series.events
            if start_s <= event.timestamp < end_s
            and not event.cancelled
            and (not before_ms or event.created_ms <= before_ms)
        ]
        if formula == "count":
            return Decimal(len(events))
        return max(events, key=lambda event: (event.timestamp, event.created_ms)).value if events else Decimal()

    def totals(self) -> list[dict[str, Any]]:
        """Sums per customer and meter, with those of each minute."""
        found = []
        for (meter, customer), series in self.series.items():
            minutes: defaultdict[int, Decimal] = defaultdict(Decimal)
            for second, value in series.seconds.items():
                minutes[second - second % 60] += value
            found.append(
                {
                    "meter": meter,
                    "customer": customer,
                    "events": sum(not event.cancelled for event in series.events),
                    "total": sum(series.seconds.values(), Decimal()),
                    "minutes": {str(minute): value for minute, value in sorted(minutes.items())},
                }
            )
        return found
