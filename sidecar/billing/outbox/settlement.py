"""Settles by Stripe's event summaries what no answer has settled: rows in doubt, and a ledger older than Stripe.

Guarantees: a row is taken as arrived, or as not arrived, only when the sums allow nothing else, some time after its
            last call, and when Stripe already shows what was delivered later. Otherwise it waits, and in the end it is
            parked with both numbers for a person to decide. Nothing is guessed. Rows that a sum was explained with
            when others were sent again are marked: a report about one of them is left to the sums again.
Gives up:   digits that a double does not have: sums that differ by less than it can show are ambiguous.
Source:     https://docs.stripe.com/api/billing/meter-event-summary/list (whole minutes, floats, some delay).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

from msgspec import Struct

from sidecar.billing.outbox import lanes, outbox
from sidecar.billing.outbox.delta import HOUR_S, MINUTE_S, Window, identifier
from sidecar.billing.outbox.lanes import Work
from sidecar.billing.outbox.outbox import SETTLE_AFTER_S
from sidecar.billing.outbox.row import Row, keys
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

log = logging.getLogger(__name__)

PARK_AFTER_S = 3 * 86_400
HOURS_PER_VISIT = 3
UNKNOWN_MAX = 10
EXACT = Decimal("1e-12")  # of a sum: what a double and a few additions may be off

Verdict = Literal["present", "absent", "ambiguous"]


class Known(Struct, frozen=True):
    """A row that Stripe has or may have. ``doubted_s``: when it was first sent, or a report told of it after that."""

    row: Row
    state: str
    adopted: bool
    summed: bool
    delivered_s: int
    doubted_s: int
    to_settle: bool

    @property
    def value(self) -> Decimal:
        return Decimal(self.row.value)


class Summaries:
    """What Stripe says it has of a customer and meter."""

    def __init__(self, api: StripeApi) -> None:
        self._list = api.v1.billing.meters.event_summaries.list_async

    async def total(self, work: Work, from_s: int, before_s: int) -> Decimal:
        """The sum of a span of whole minutes."""
        with errors():
            found = await self._list(
                work.meter, {"customer": work.customer, "start_time": from_s, "end_time": before_s, "limit": 100}
            )
        return sum((Decimal(repr(summary.aggregated_value)) for summary in found.data), Decimal(0))

    async def spans(self, work: Work, window: Literal["hour", "day"], from_s: int, before_s: int) -> dict[int, Decimal]:
        """The sums of at most 100 hours or days, by their start."""
        with errors():
            found = await self._list(
                work.meter,
                {
                    "customer": work.customer,
                    "start_time": from_s,
                    "end_time": before_s,
                    "value_grouping_window": window,
                    "limit": 100,
                },
            )
        return {summary.start_time: Decimal(repr(summary.aggregated_value)) for summary in found.data}


def equal(one: Decimal, other: Decimal) -> bool:
    """Whether two sums are the same as far as a double can tell."""
    return abs(one - other) <= max(abs(one), abs(other)) * EXACT


def verdicts(
    seen: Decimal, certain: Decimal, unknown: Sequence[Decimal], under_way: Sequence[bool] = ()
) -> list[Verdict]:
    """Which of the unknown values must be in the sum, which cannot be.

    Equal values stand for each other: of two, one arrived, it does not matter which one is called delivered. Unless
    one of them is ``under_way``, to be settled by its own answer: what is said of the others then would be a guess.
    """
    count = len(unknown)
    if count > UNKNOWN_MAX:
        return [_alike(seen, certain, unknown)] * count
    fitting = []
    for mask in range(2**count):
        chosen = [value for index, value in enumerate(unknown) if mask >> index & 1]
        if equal(seen, certain + sum(chosen, Decimal(0))):
            fitting.append((sorted(chosen), mask))
    if not fitting or any(chosen != fitting[0][0] for chosen, _ in fitting):
        return ["ambiguous"] * count
    found: list[Verdict] = ["present" if fitting[0][1] >> index & 1 else "absent" for index in range(count)]
    told = set(zip(unknown, found, strict=True))
    open_ = {value for value, moving in zip(unknown, under_way, strict=False) if moving}
    return [
        "ambiguous" if value in open_ and {(value, "present"), (value, "absent")} <= told else verdict
        for value, verdict in zip(unknown, found, strict=True)
    ]


def _alike(seen: Decimal, certain: Decimal, unknown: Sequence[Decimal]) -> Verdict:
    """The same for more values than there is time to try: all of them or none, which no other sum can come to."""
    whole = certain + sum(unknown, Decimal(0))
    least = min(unknown)
    if equal(whole, whole - least) or equal(certain, certain + least):
        return "ambiguous"  # a double does not tell
    return "present" if equal(seen, whole) else "absent" if equal(seen, certain) else "ambiguous"


async def settle(ledger: Ledger, summaries: Summaries, work: Work) -> list[Verdict]:
    """Settle the rows in doubt of a claimed lane, a few hours of timestamps a visit; the lane stays claimed."""
    async with ledger.transaction() as tx:
        hours = await tx.rows("hours_in_doubt", work.tenant, work.metric, HOURS_PER_VISIT)
    found: list[Verdict] = []
    for (hour_s,) in hours:
        found += await _settle_hour(ledger, summaries, work, int(hour_s))
    return found


async def _settle_hour(ledger: Ledger, summaries: Summaries, work: Work, hour_s: int) -> list[Verdict]:
    async with ledger.transaction() as tx:
        known = await _known(tx, work, hour_s)
        last_sent_s = max((item.row.last_sent_s for item in known if item.to_settle), default=0)
        witness_s = await tx.value("witness", work.tenant, work.metric, last_sent_s)
        shown = [] if witness_s is None else await _known(tx, work, int(witness_s) - int(witness_s) % HOUR_S)
    found: list[Verdict] = []
    fresh = witness_s is None or await _shows(summaries, work, int(witness_s), shown)
    for from_s, before_s, items in _spans(known, hour_s):
        certain = sum((item.value for item in items if item.state == "delivered"), Decimal(0))
        unknown = [item for item in items if item.state != "delivered"]
        seen = await summaries.total(work, from_s, before_s)
        judged = verdicts(seen, certain, [item.value for item in unknown], [not item.to_settle for item in unknown])
        if not (fresh and _all_show(work, items)) and "absent" in judged:
            judged = ["ambiguous"] * len(judged)
        async with ledger.transaction() as tx:
            if not await lanes.still_mine(tx, work) or await _moved(tx, work, hour_s, items):
                return found
            pairs = [pair for pair in zip(unknown, judged, strict=True) if pair[0].to_settle]
            told = f"Stripe has {seen:f} from {from_s} to {before_s}, of which {certain:f} were confirmed"
            await _apply(tx, work, pairs, (from_s, before_s), told)
        found += [verdict for _, verdict in pairs]
    return found


def _spans(known: Sequence[Known], hour_s: int) -> list[tuple[int, int, list[Known]]]:
    """Minutes with something to settle; the whole hour when something was adopted or explained in it.

    Nobody knows the minute of what was adopted, nor, after a comparison of hours, which row a minute's sum is of.
    """
    if any(item.adopted or item.summed for item in known):
        return [(hour_s, hour_s + HOUR_S, list(known))]
    minutes = sorted({item.row.at_s // MINUTE_S * MINUTE_S for item in known if item.to_settle})
    return [
        (minute_s, minute_s + MINUTE_S, [item for item in known if item.row.at_s // MINUTE_S * MINUTE_S == minute_s])
        for minute_s in minutes
    ]


async def _shows(summaries: Summaries, work: Work, at_s: int, known: Sequence[Known]) -> bool:
    """Whether the summaries have come as far as a delivery that is newer than what is to be settled."""
    minute_s = at_s // MINUTE_S * MINUTE_S
    certain = sum(
        (
            i.value
            for i in known
            if i.state == "delivered" and not i.adopted and i.row.at_s // MINUTE_S * MINUTE_S == minute_s
        ),
        Decimal(0),
    )
    seen = await summaries.total(work, minute_s, minute_s + MINUTE_S)
    return seen > certain or equal(seen, certain)


def _all_show(work: Work, items: Sequence[Known]) -> bool:
    """Whether all that was delivered of a span shows in its sum by now: it must not be what the sum has of others."""
    visible_s = work.now_s - SETTLE_AFTER_S
    return all(item.delivered_s <= visible_s for item in items if item.state == "delivered" and not item.adopted)


async def _apply(
    tx: Transaction, work: Work, pairs: Sequence[tuple[Known, Verdict]], span: tuple[int, int], told: str
) -> None:
    ledger_id = str(await tx.value("installation"))
    present = [item.row for item, verdict in pairs if verdict == "present"]
    absent = [item.row for item, verdict in pairs if verdict == "absent"]
    unclear = [item for item, verdict in pairs if verdict == "ambiguous"]
    if present:
        await tx.rows("settle_rows", *keys(present))
    if absent:
        names = [identifier(ledger_id, row.window, row.number, row.attempt + 1) for row in absent]
        await outbox.mark_summed(tx, [(work.tenant, work.metric, *span)])
        await tx.rows("new_attempts", *keys(absent), names, ["nothing had arrived"] * len(absent))
    given_up = [item.row for item in unclear if work.now_s >= item.doubted_s + PARK_AFTER_S]
    waiting = [item.row for item in unclear if item.row not in given_up]
    if given_up:
        await tx.rows("park_rows", *keys(given_up), [told] * len(given_up))
    if waiting:
        await tx.rows("look_later", *keys(waiting), [told] * len(waiting), SETTLE_AFTER_S)
    for item, verdict in pairs:
        row = item.row
        log.warning(
            "delta in doubt settled" if verdict != "ambiguous" else "delta stays in doubt",
            extra=fields(
                tenant=work.tenant,
                metric=work.metric,
                identifier=row.identifier,
                verdict=verdict,
                value=row.value,
                told=told,
            ),
        )


async def _moved(tx: Transaction, work: Work, hour_s: int, items: Sequence[Known]) -> bool:
    """Whether something was told of these rows since they were read, so that the sum means something else."""
    now = {(item.row.window, item.row.number): item for item in await _known(tx, work, hour_s)}
    then = {(item.row.window, item.row.number): item for item in items}
    return any(
        key not in now or (now[key].row.identifier, now[key].state) != (item.row.identifier, item.state)
        for key, item in then.items()
    )


async def _known(tx: Transaction, work: Work, hour_s: int) -> list[Known]:
    return [_read(work, row) for row in await tx.rows("rows_of_hour", work.tenant, work.metric, hour_s)]


def _read(work: Work, row: Any) -> Known:
    period_s, window_s, *rest = row
    *told, state, adopted, summed, delivered_s, doubted_s, to_settle = rest
    sent = Row(Window(work.tenant, work.metric, period_s, window_s), *told)
    return Known(sent, state, adopted, summed, delivered_s, doubted_s, to_settle)
