"""The outbox: decides which usage Stripe does not have yet, and keeps it as numbered deltas until it has.

Guarantees: the deltas of a window never add up to more than its total, and to exactly that once everybody is quiet. A
            delta's amount, value, identifier and timestamp are fixed in the transaction that reads the total, which
            has the shard for itself.
Gives up:   deciding while a lane has deltas that nobody has tried yet: what comes meanwhile becomes one larger delta.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from decimal import Decimal

from msgspec import Struct

from sidecar.billing.outbox import delta
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.delta import Terms, Window
from sidecar.errors import NotFound
from sidecar.ledger import metrics, plans
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

log = logging.getLogger(__name__)

WINDOWS_PER_PASS = 2_000
CLOSES_PER_DELAY = 4  # decide at least so often between a period's end and its closing
UNBILLABLE = "nobody pays for usage of that time, and Stripe takes no events of it any more"
SETTLE_AFTER_S = 1_800  # Stripe's summaries follow its answers with some delay; nothing is concluded before


class Delta(Struct, frozen=True):
    """One row: part ``number`` of a window. ``adopted``: Stripe has it already, though this ledger did not know.

    ``unbillable``: it is never sent.
    """

    window: Window
    number: int
    amount: int
    value: Decimal
    identifier: str
    at_s: int
    deadline_s: int
    late: bool
    adopted: bool = False
    unbillable: bool = False


class Parked(Struct, frozen=True):
    """A row that was set aside, and why."""

    window: Window
    number: int
    amount: int
    attempt: int
    identifier: str
    reason: str
    created_s: int


class Scales:
    """Decimal places of every metric that is or was billed by its sum, read once a catalogue revision.

    A metric that left the catalogue is billed until nothing of it is left. ``former`` are those, as far as anybody
    has yet to look whether something is.
    """

    __slots__ = ("_revision", "_scales", "former")

    def __init__(self) -> None:
        self._revision = 0
        self._scales: dict[str, int] = {}
        self.former: set[str] = set()

    async def read(self, tx: Transaction) -> dict[str, int]:
        """Metric -> scale; empty before the first catalogue."""
        revision = await plans.current_revision(tx)
        if revision != self._revision:
            # What a level metric is billed by is no sum of windows.
            found = [one for one in (await metrics.known(tx)).values() if one.kind == "sum"]
            self._scales = {one.name: one.scale for one in found}
            self.former = {one.name for one in found if one.revision < revision}
            self._revision = revision
        return self._scales


class Outbox:
    """Decides deltas, shard by shard; several processes may."""

    def __init__(self, ledger: Ledger, counters: BillingCounters, *, interval_s: int, close_delay_s: int) -> None:
        self._ledger = ledger
        self._counters = counters
        self._close_delay_s = close_delay_s
        self._interval_s = max(1, min(interval_s, close_delay_s // CLOSES_PER_DELAY or interval_s))
        self.scales = Scales()

    async def due(self, *, now: bool = False) -> list[int]:
        """Shards whose turn it is and that have something to decide; ``now``: all that have.

        The shards take turns over the interval, and each installation begins at another second.
        """
        async with self._ledger.transaction() as tx:
            rows = await tx.rows("shards_to_decide")
            shards = tx.shards
        ready = []
        for ledger_id, now_s, shard, decided_s in rows:
            if shard is None:
                continue
            turn_s = turn(str(ledger_id), shard, shards, self._interval_s, now_s)
            if now or decided_s < turn_s or decided_s > now_s:
                ready.append(shard)
        return ready

    async def decide(self, shard: int, tenant: str = "") -> int | None:
        """Decide a shard's deltas, or those of one of its tenants; how many, None while another pass has the shard."""
        written = 0
        while True:
            async with self._ledger.shard(shard) as tx:
                if tx is None:
                    return None
                deltas, complete = await self._pass(tx, shard, tenant)
            written += len(deltas)
            self._counters.deltas += len(deltas)
            self._counters.late += sum(item.late for item in deltas)
            self._counters.unbillable += sum(item.unbillable for item in deltas)
            if complete:
                return written

    async def left_behind(self) -> list[str]:
        """Metrics that are in no catalogue any more and of which nothing is left to send; each is told once."""
        async with self._ledger.transaction() as tx:
            await self.scales.read(tx)
            rows = await tx.rows("metrics_left_behind", list(self.scales.former)) if self.scales.former else []
        done = [str(row[0]) for row in rows]
        self.scales.former.difference_update(done)
        for metric in done:
            log.info(
                "a metric left the catalogue, and all that was counted of it is settled", extra=fields(metric=metric)
            )
        return done

    async def undecided(self, tenant: str) -> tuple[int, int]:
        """How many windows of a tenant the outbox does not have, and how many of those may be decided soon."""
        async with self._ledger.transaction() as tx:
            shard = int(await tx.value("shard_of", tenant))
            scales = await self.scales.read(tx)
            # Without an hour of what was touched, only the windows of the tenant itself are read.
            found = await tx.rows("undecided_windows", shard, None, WINDOWS_PER_PASS, tenant, list(scales), [tenant])
        return len(found), sum(row["held"] != "unverified" for row in found)

    async def _pass(self, tx: Transaction, shard: int, tenant: str) -> tuple[list[Delta], bool]:
        state = await tx.row("outbox_state", shard)
        if state is None:
            raise NotFound("Postgres has no installation row; run `sidecar migrate`")
        scales = await self.scales.read(tx)
        since_s = min((s for s in (state["touched_s"], state["new_meters_s"]) if s is not None), default=None)
        newcomers = [name for name in state["newcomers"] if tenant in ("", name)]
        rows = await tx.rows("undecided_windows", shard, since_s, WINDOWS_PER_PASS, tenant, list(scales), newcomers)
        ready = [row for row in rows if not row["held"]]
        held = [row for row in rows if row["held"]]
        unverified = [(row["tenant"], row["metric"]) for row in held if row["held"] == "unverified"]
        if unverified:
            await tx.rows("wake_unverified_lanes", *zip(*unverified, strict=True), SETTLE_AFTER_S)
        windows = [
            (
                Window(row["tenant"], row["metric"], int(row[2]), int(row[3])),
                row["number"],
                row["amount"],
                Terms(int(row[6]), row["interval_months"], self._close_delay_s, int(row[9]), int(row[10])),
            )
            for row in ready
        ]
        deltas = await place(tx, str(state["ledger_id"]), windows, scales, state["now_s"])
        await write(tx, deltas)
        complete = len(rows) < WINDOWS_PER_PASS or not ready
        if complete and not tenant:
            left_s = min((int(row[3]) for row in held), default=None)
            await tx.rows("decided", shard, left_s, state["meters"])
            if newcomers and not held:
                await tx.rows("customers_looked_at", newcomers)
        return deltas, complete


def turn(ledger_id: str, shard: int, shards: int, interval_s: int, now_s: int) -> int:
    """When a shard's latest turn began."""
    offset_s = (zlib.crc32(ledger_id.encode()) + shard * interval_s // shards) % interval_s
    return now_s - (now_s - offset_s) % interval_s


async def place(
    tx: Transaction,
    ledger_id: str,
    windows: Sequence[tuple[Window, int, int, Terms]],
    scales: dict[str, int],
    now_s: int,
) -> list[Delta]:
    """Cut amounts of windows (with the number of the first piece) and find each piece a minute that is free."""
    placed = []
    for window, number, amount, terms in windows:
        where = delta.place(window, terms, now_s)
        if where is not None:
            placed.append((window, number, amount, where))
    taken = await minutes_taken(tx, [(window, where) for window, _, _, where in placed])
    deltas = []
    for window, first, amount, where in placed:
        minutes, scale = taken[window.tenant, window.metric], scales[window.metric]
        for number, piece in enumerate(delta.pieces(amount, scale), first):
            at_s = delta.moment(where, minutes)
            minutes.add(at_s // delta.MINUTE_S)
            deltas.append(
                Delta(
                    window,
                    number,
                    piece,
                    delta.value(piece, scale),
                    delta.identifier(ledger_id, window, number, 1),
                    at_s,
                    where.deadline_s,
                    where.late,
                    unbillable=where.unbillable,
                )
            )
    return deltas


async def minutes_taken(
    tx: Transaction, places: Sequence[tuple[Window, delta.Place]]
) -> dict[tuple[str, str], set[int]]:
    """Minutes that the lanes' rows have in these places, by lane."""
    found: dict[tuple[str, str], set[int]] = {(window.tenant, window.metric): set() for window, _ in places}
    if places:
        minute = delta.MINUTE_S
        rows = await tx.rows(
            "minutes_taken",
            [window.tenant for window, _ in places],
            [window.metric for window, _ in places],
            [where.from_s - where.from_s % minute for _, where in places],
            [where.to_s + minute for _, where in places],
        )
        for index, taken in rows:
            window = places[index][0]
            found[window.tenant, window.metric].add(int(taken))
    return found


async def write(tx: Transaction, deltas: Sequence[Delta]) -> None:
    """Write rows and wake their lanes, in the order in which everybody locks lanes."""
    if not deltas:
        return
    await tx.rows(
        "write_deltas",
        [d.window.tenant for d in deltas],
        [d.window.metric for d in deltas],
        [d.window.period_s for d in deltas],
        [d.window.hour_s for d in deltas],
        [d.number for d in deltas],
        [d.amount for d in deltas],
        [format(d.value, "f") for d in deltas],
        [d.identifier for d in deltas],
        [d.at_s for d in deltas],
        [d.deadline_s for d in deltas],
        [d.late for d in deltas],
        [d.adopted for d in deltas],
        [UNBILLABLE if d.unbillable else "" for d in deltas],
    )
    for found in (d for d in deltas if d.unbillable):
        window = found.window
        log.warning(
            "usage came too late that nobody pays for; it is not sent",
            extra=fields(tenant=window.tenant, metric=window.metric, hour_s=window.hour_s, amount=found.amount),
        )
    await wake(tx, [(d.window, d.deadline_s) for d in deltas if not d.adopted and not d.unbillable])


async def wake(tx: Transaction, lanes: Sequence[tuple[Window, int]]) -> None:
    """Have the lanes of these windows looked at, with the deadline of what there is to do."""
    if lanes:
        names = [[window.tenant for window, _ in lanes], [window.metric for window, _ in lanes]]
        await tx.rows("wake_lanes", *names, [deadline_s for _, deadline_s in lanes])


async def mark_summed(tx: Transaction, spans: Sequence[tuple[str, str, int, int]]) -> None:
    """Note of rows in spans (tenant, metric, from, before; seconds of timestamps) that a sum was explained with them.

    To be called before a row is sent again because the sum lacks it, in the same transaction.
    """
    if spans:
        await tx.rows("mark_summed", *(list(column) for column in zip(*spans, strict=True)))
