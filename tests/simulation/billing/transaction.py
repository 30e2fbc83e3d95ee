"""An open transaction of a Postgres with an outbox: its locks, and what its queries share.

Guarantees: a transaction takes effect as a whole or not at all, and a lane that one has written to is read and written
            by nobody else until its end; two that wait for each other end as a deadlock does.
Gives up:   what transactions of one lane see of each other's middle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any
from zlib import crc32

from msgspec.structs import replace

from sidecar.errors import LedgerUnavailable
from tests.simulation.billing.tables import Lane, LaneRow, Outbox, OutboxRow, OutboxServer
from tests.simulation.postgres import MemoryTransaction
from tests.simulation.scheduler import Process

TRIES_MAX = 400  # of a lock, some ms apart: then it is a deadlock
_OF_ROWS = {
    "begin_sending", "doubt_rows", "explain_rows", "move_rows", "write_off_rows", "settle_rows", "new_attempts",
    "park_rows", "look_later", "wake_lanes", "wake_unverified_lanes", "lock_lanes", "record_fates", "write_deltas",
    "minutes_taken", "mark_summed",
}  # fmt: skip
_READS = {"hours_in_doubt", "rows_of_hour", "witness", "delivered_by_hour", "next_number", "unbilled_windows"}
_OF_LANE = {"lane_verified", "rest_lane", "forget_undelivered_of_lane"} | _READS
_OF_SHARD = {"forget_undelivered", "rest_lanes", "distrust_customers"}
_OF_ROW = {"lock_lanes_of_rows", "rows_by_identifier"}
_OF_LANES = _OF_ROWS | _OF_LANE | _OF_SHARD | _OF_ROW | {"release_lanes", "undecided_windows"}


class LaneTransaction(MemoryTransaction):
    """An open transaction; every named query is a method of that name."""

    __slots__ = ("_pause",)

    tables: Outbox

    def __init__(
        self,
        postgres: OutboxServer,
        shard: int,
        process: Process,
        answer: Callable[[], Awaitable[None]],
        pause: Callable[[int], Awaitable[None]],
    ) -> None:
        super().__init__(postgres, shard, process, answer)
        self._pause = pause

    def rows(self, name: str, *arguments: Any) -> Coroutine[Any, Any, list[Any]]:
        if name in _OF_LANES:
            return self._rows_of_lanes(name, arguments)
        return MemoryTransaction.rows(self, name, *arguments)

    async def _rows_of_lanes(self, name: str, arguments: tuple[Any, ...]) -> list[Any]:
        needed, keeps = self._needed(name, arguments)
        if needed:
            await self._have(sorted(needed), keeps=keeps)
        return await MemoryTransaction.rows(self, name, *arguments)

    # Locks.

    def _needed(self, name: str, arguments: tuple[Any, ...]) -> tuple[set[Lane], bool]:
        """The lanes that a query reads or writes, and whether it locks them."""
        if name in _OF_ROWS:
            return set(zip(arguments[0], arguments[1], strict=True)), name != "minutes_taken"
        if name == "release_lanes":
            return set(zip(arguments[1], arguments[2], strict=True)), True
        if name in _OF_LANE:
            return {(arguments[0], arguments[1])}, name not in _READS
        if name in _OF_SHARD:
            return set(self._lanes_of(arguments[0], arguments[1])), True
        if name == "undecided_windows":
            return set(self._lanes_of(arguments[0], "")), False
        names = arguments[0] if name == "lock_lanes_of_rows" else [arguments[0]]
        every = self._all.rows.items()
        return {lane for lane, rows in every for row in rows.values() if row.identifier in names}, True

    async def _have(self, lanes: Sequence[Lane], *, keeps: bool) -> None:
        locks = self._server.lane_locks
        for lane in lanes:
            for _ in range(TRIES_MAX):
                if locks.get(lane) in {None, self}:
                    break
                await self._pause(5_000)
                self._alive()
            else:
                raise LedgerUnavailable("deadlock detected")
            if keeps:
                locks[lane] = self

    def _end(self) -> None:
        super()._end()
        locks = self._server.lane_locks
        for lane in [lane for lane, holder in locks.items() if holder is self]:
            del locks[lane]

    # What queries share.

    @property
    def _server(self) -> OutboxServer:
        return self._postgres  # type: ignore[return-value]

    @property
    def _all(self) -> Outbox:
        return self._postgres.tables  # type: ignore[return-value]

    @property
    def _now(self) -> int:
        return self._postgres.clock()

    def _lanes_of(self, shard: int, tenant: str) -> Iterator[Lane]:
        for lane in {*self._all.lanes, *self._all.rows}:
            if lane[0] == tenant or crc32(lane[0].encode()) % self.shards == shard:
                yield lane

    def _keyed(self, columns: Sequence[list[Any]]) -> Iterator[tuple[int, OutboxRow]]:
        """Rows of the outbox by their keys in five columns, with their positions in these."""
        for index, (tenant, metric, *key) in enumerate(zip(*columns[:5], strict=True)):
            row = self._all.rows.get((tenant, metric), {}).get((key[0], key[1], key[2]))
            if row is not None:
                yield index, row

    def _put(self, row: OutboxRow, **changes: Any) -> None:
        rows = self._all.rows[row.tenant, row.metric]
        self._set(rows, (row.period_s, row.hour_s, row.number), replace(row, **changes))

    def _lane_rows(self, lane: Lane) -> Iterable[OutboxRow]:
        return self._all.rows.get(lane, {}).values()

    def _billed(self, lane: Lane, period_s: int, hour_s: int) -> tuple[int, int]:
        """What the rows of a window stand for, and the number of the last one."""
        found = [row for row in self._lane_rows(lane) if (row.period_s, row.hour_s) == (period_s, hour_s)]
        return sum(row.amount for row in found), max((row.number for row in found), default=0)

    def _distrusted(self, lane: Lane) -> bool:
        restored = self._all.customers[lane[0]].restored
        verified = self._all.lanes.get(lane, LaneRow()).verified
        return restored is not None and (verified is None or verified < restored)
