"""A transaction that has one shard of the ledger for itself: what a flusher's pass is made of.

Guarantees: nobody else merges, raises the epoch or marks projections of this shard while it is open; what it did is
            seen as a whole or not at all. Counters only grow, and merging anything twice changes nothing (C2).
Gives up:   waiting for the shard: another flusher that has it is as good.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import chain

from msgspec import Struct

from sidecar.catalogue.model import ANONYMOUS
from sidecar.catalogue.snapshot import Snapshot
from sidecar.errors import LedgerRefused
from sidecar.ledger import keys, projection
from sidecar.ledger.spans import Span, SpanTotal, totals
from sidecar.ledger.tenants import TenantRow
from sidecar.ledger.transaction import Connection, Transaction

# Never all in one batch. The first one is what nobody uses; the others are beyond the planes of writing.
SEPARATORS = ((0x1F,), range(0xF0000, 0x110000))
LOCK_CLASS = 0x5C5  # the first half of the advisory lock's key; the shard is the second


class CounterRow(Struct, frozen=True, gc=False):
    """What one writer counted in one window, cumulative. ``hour`` is unix seconds // 3600."""

    tenant: str
    metric: str
    scope: str
    period_s: int
    hour: int
    writer: str
    amount: int


class ShardState(Struct, frozen=True):
    """How far a shard is: the epoch of the last pass that wrote, and the Redis generation the ledger knows.

    ``doubted``: another shard showed that this ledger was restored from a backup.
    """

    epoch: int
    generation: str
    doubted: bool = False


class ShardTransaction(Transaction):
    """See the module. Made by Ledger.shard()."""

    __slots__ = ("_folded_hour", "shard")

    def __init__(self, connection: Connection, shards: int, shard: int) -> None:
        super().__init__(connection, shards)
        self.shard = shard
        self._folded_hour: int | None = None

    async def take(self) -> bool:
        """Lock the shard until the transaction ends; False when another transaction has it."""
        return bool(await self.value("take_shard", LOCK_CLASS, self.shard))

    async def merge(self, rows: Sequence[CounterRow], default_plan: str = "", anonymous_plan: str = "") -> int:
        """Merge counters with max, recompute the totals of windows that grew, return how many counters grew.

        A tenant nobody put is introduced with ``default_plan`` (requests without identity: ``anonymous_plan``), so that
        nothing counted is ever without an owner.
        """
        if not rows:
            return 0
        names = list({row.tenant for row in rows})
        for name in names:
            if zlib.crc32(name.encode()) % self.shards != self.shard:
                raise LedgerRefused(f"tenant {name!r} does not belong to shard {self.shard}")
        if ANONYMOUS in names:
            await self.rows("introduce_tenants", [ANONYMOUS], anonymous_plan, self.shard)
        await self.rows("introduce_tenants", names, default_plan, self.shard)
        await self._unfold(rows)
        return int(await self.value("merge_counters", self.shard, *_joined(rows)))

    async def _unfold(self, rows: Sequence[CounterRow]) -> None:
        """Windows that were folded have their counters back when something is merged into them."""
        if self._folded_hour is None:
            await self.state()
        before = self._folded_hour or 0
        old = {(row.tenant, row.metric, row.scope, row.period_s, row.hour) for row in rows if row.hour < before}
        if old:
            await self.rows("unfold_windows", self.shard, *map(list, zip(*old, strict=True)))

    async def fold(self, most: int) -> int:
        """Fold counters of windows that are long over, the oldest first; returns how many (docs/ledger.md)."""
        self._folded_hour = None
        return int(await self.value("fold_counters", self.shard, most))

    async def state(self) -> ShardState:
        row = await self.row("shard_state", self.shard)
        self._folded_hour = int(row[3]) if row is not None else 0
        return ShardState(*row[:3]) if row is not None else ShardState(0, "")

    async def raise_epoch(self, beyond: int = 0) -> int:
        """Raise the epoch by one, or to ``beyond`` + 1 when that is more, and return it."""
        return int(await self.value("raise_epoch", self.shard, beyond))

    async def doubt(self) -> bool:
        """Have every other shard compared, too: a ledger that was restored is older in all of them. Whether it did.

        One that is doubted already gives no cause to doubt the others again: they were, or were compared since.
        """
        await self.rows("take_doubts")
        known = (await self.state()).doubted
        if not known:
            await self.rows("doubt_other_shards", self.shard)
        await self.rows("trust_shard", self.shard)
        return not known

    async def set_generation(self, generation: str) -> None:
        await self.rows("set_generation", self.shard, generation)

    async def recent_counters(self, since_hour: int) -> list[CounterRow]:
        """Every counter of this shard's windows of ``since_hour`` and later, by hour."""
        return [CounterRow(*row) for row in await self.rows("recent_counters", self.shard, since_hour)]

    async def totals(self, spans: Sequence[Span]) -> list[SpanTotal]:
        """Sum the windows of many spans in one round trip; see spans.totals."""
        return await totals(self, spans)

    async def pending_tenants(self, most: int) -> list[TenantRow]:
        """Tenants of this shard that changed since they were projected, the longest waiting first."""
        return await projection.pending(self, self.shard, most)

    async def mark_projected(self, snapshots: Sequence[Snapshot]) -> None:
        """Record that Redis has these snapshots, and keep their limits for the ledger's own functions and views."""
        await projection.mark(self, snapshots)

    async def pending_keys(self, most: int) -> list[keys.KeyRow]:
        """API keys of this shard (by the key's hash) that changed since they were projected."""
        return await keys.pending(self, self.shard, most)

    async def mark_keys_projected(self, projected: Sequence[keys.KeyRow]) -> None:
        await keys.mark_projected(self, projected)


def _joined(rows: Sequence[CounterRow]) -> Iterator[str]:
    """The columns of rows as merge_counters takes them, and last what separates texts: something that is in none."""
    texts = [[r.tenant for r in rows], [r.metric for r in rows], [r.scope for r in rows], [r.writer for r in rows]]
    numbers = [[r.period_s for r in rows], [r.hour for r in rows], [r.amount for r in rows]]
    whole = "".join(chain.from_iterable(texts))
    separator = next(one for one in map(chr, chain(*SEPARATORS)) if one not in whole)
    tenants, metrics, scopes, writers = map(separator.join, texts)
    periods, hours, amounts = ("{" + ",".join(map(str, column)) + "}" for column in numbers)
    yield from (tenants, metrics, scopes, periods, hours, writers, amounts, separator)
