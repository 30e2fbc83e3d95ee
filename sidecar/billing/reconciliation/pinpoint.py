"""Which rows of the outbox a difference between them and Stripe comes from. Pure, minute by minute.

Guarantees: a row is blamed only when the sums of its minute allow nothing else; rows of equal amounts stand for each
            other, but not for one that need not show yet. What cannot be told apart is said to be so. Where a sum was
            explained with rows before, their whole hour is looked at, as nobody knows which of them it was.
Gives up:   minutes with more than ``ROWS_MAX`` rows, and rows that were adopted, of which only the hour is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from sidecar.billing.outbox.delta import HOUR_S, MINUTE_S, Window
from sidecar.billing.outbox.outbox import SETTLE_AFTER_S
from sidecar.billing.reconciliation.drift import Seen

ROWS_MAX = 10
CERTAIN = "delivered"
OPEN = ("sending", "in_doubt")

Blame = Literal["lacking", "arrived", "doubled", "recent"]


class SentRow(Struct, frozen=True):
    """A row of the outbox as far as it matters here."""

    window: Window
    number: int
    amount: int
    identifier: str
    attempt: int
    state: str
    adopted: bool
    summed: bool
    at_s: int
    first_sent_s: int
    delivered_s: int

    @property
    def open(self) -> bool:
        """Whether nobody knows if Stripe has it."""
        return self.state in OPEN or (self.state == "waiting" and self.first_sent_s > 0)


class Finding(Struct, frozen=True):
    """A row, and what is wrong with it.

    ``lacking``: Stripe does not have it though it was confirmed. ``arrived``: Stripe has it though it was set aside.
    ``doubled``: Stripe has an earlier attempt of it as well. ``recent``: nothing is, it need not show yet.
    """

    row: SentRow
    blame: Blame

    @property
    def amount(self) -> int:
        """By how much it makes Stripe differ from the rows."""
        return -self.row.amount if self.blame in ("lacking", "recent") else self.row.amount


class Minute(Struct, frozen=True):
    """What a minute's difference comes from: findings, and what is left that cannot be told or has no row at all."""

    findings: tuple[Finding, ...] = ()
    unknown: int = 0
    foreign: int = 0


def span(rows: Sequence[SentRow], at_s: int) -> tuple[int, int]:
    """What is looked at as a whole: the minute of a timestamp, or its hour; ``rows`` are those of the hour."""
    unit_s = HOUR_S if any(row.summed or row.adopted for row in rows) else MINUTE_S
    return at_s - at_s % unit_s, at_s - at_s % unit_s + unit_s


def blame(shown: Seen, rows: Sequence[SentRow], now_s: int) -> Minute:
    """Tell what the difference between a span's sum and its rows comes from."""
    certain = [row for row in rows if row.state == CERTAIN]
    recent = [row for row in certain if row.delivered_s > now_s - SETTLE_AFTER_S]
    difference = shown.amount - sum(row.amount for row in certain)
    undecided = sum(row.amount for row in rows if row.open)
    if abs(difference) <= shown.blur or -sum(row.amount for row in recent) <= difference <= undecided:
        return Minute()
    if undecided or any(row.adopted for row in rows):
        return Minute(unknown=difference)
    suspects = [Finding(row, "recent") for row in recent]
    if difference < 0:
        suspects += [Finding(row, "lacking") for row in certain if row not in recent]
    else:
        suspects += [Finding(row, "arrived") for row in rows if row.state == "parked"]
        suspects += [Finding(row, "doubled") for row in certain if row.attempt > 1]
    if len(suspects) > ROWS_MAX:
        return Minute(unknown=difference)
    fitting = _fitting(difference, suspects)
    if len(fitting) == 1:
        return Minute(findings=tuple(finding for finding in fitting[0] if finding.blame != "recent"))
    if fitting or difference < 0:
        return Minute(unknown=difference)
    return Minute(foreign=difference)


def _fitting(difference: int, suspects: Sequence[Finding]) -> list[list[Finding]]:
    """The sets of suspects that make up the difference; one of those that equal each other in all that matters."""
    found: dict[tuple[tuple[str, int], ...], list[Finding]] = {}
    for mask in range(1, 2 ** len(suspects)):
        chosen = [suspect for index, suspect in enumerate(suspects) if mask >> index & 1]
        if sum(suspect.amount for suspect in chosen) == difference:
            found.setdefault(tuple(sorted((suspect.blame, suspect.amount) for suspect in chosen)), chosen)
    return list(found.values())
