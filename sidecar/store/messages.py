"""What writers and flushers exchange with Redis, as msgpack arrays; the Lua scripts state the same shapes.

Units are integers in a metric's base unit, below 2**53: Redis computes in Lua numbers, which are doubles.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

UNITS_MAX = 2**53 - 1
# Bytes before the content of a string, by the first of them; 1 where the length is in that one (msgpack specification).
STRING_HEADS = {0xD9: 2, 0xDA: 3, 0xDB: 5}


class LeaseReport(Struct, frozen=True, array_like=True):
    """One limit in a sync: what is left of its lease, what a waiter needs, what would be good to have on top."""

    name: str
    id: str
    start: int
    end_ms: int
    small: bool
    left: int
    need: int
    want: int
    cumulative: int


class TenantReport(Struct, frozen=True, array_like=True):
    """One tenant in a sync; windows are (series, period, hour, cumulative)."""

    tenant: str
    revision: int
    windows: list[tuple[str, int, int, int]]
    leases: list[LeaseReport]


class SyncMessage(Struct, frozen=True, array_like=True):
    """What one writer says of one shard; each part is a consistent snapshot, taken between two requests."""

    writer: str
    sequence: int
    generation: str
    acknowledged: int
    parts: list[TenantReport]


class LeaseReply(Struct, frozen=True, array_like=True):
    """What Redis says of one limit. ``over_ms``: server time of the first unit beyond the included amount, or 0."""

    units: int
    spent: int
    held: int
    over_ms: int
    called: bool


class TenantReply(Struct, frozen=True, array_like=True):
    """``revision`` newer than the report's: the part had no effect, ``leases`` is empty. -1: Redis has no snapshot."""

    revision: int
    leases: list[LeaseReply]
    stored: msgspec.Raw = msgspec.Raw()

    @property
    def document(self) -> bytes:
        """The newer snapshot (store/snapshots.py); empty where the answer does not bring it.

        Lua's strings come as msgpack's, which are text to a decoder: so this is what stands behind the length.
        """
        whole = bytes(self.stored)
        return whole[STRING_HEADS.get(whole[0], 1) :] if whole else whole


class SyncReply(Struct, frozen=True, array_like=True):
    """Answer to a sync. ``accepted``: the leases were renewed and the writer is known to be alive.

    ``hour``: the hour it is by Redis' clock, unix seconds // 3600. ``called``: tenants of which some writer was short
    lately, so that leases at rest are given back.
    """

    generation: str
    granting: bool
    watermark: int
    version: int
    accepted: bool
    parts: list[TenantReply]
    hour: int
    called: list[str] = []


class DirtyWindow(Struct, frozen=True, array_like=True, gc=False):
    """A window not yet in the ledger; ``values`` alternates writer and cumulative value."""

    tenant: str
    series: str
    period: int
    hour: int
    version: int
    values: list[str | int]


class Collected(Struct, frozen=True, array_like=True):
    """What a ledger pass starts from. ``number``: later passes over a shard have higher ones; 0 for a mere look.

    ``reclaimed`` alternates a generation and the lease units that were taken back from silent writers in it.
    """

    generation: str
    state: str
    base_hour: int
    first_direct_hour: int
    real_ms: int
    epoch: int
    reclaimed: list[str | int]
    version: int
    silent: list[str]
    windows: list[DirtyWindow]
    dirty: int
    number: int


class Publication(Struct, frozen=True):
    """A snapshot on its way to Redis; ``limits`` are its limits for scripts (store/snapshots.py).

    ``older`` alternates limit id, start, units and end (ms) of what was used in windows that only the ledger has.
    """

    tenant: str
    revision: int
    document: bytes
    limits: list[tuple[str, str, str, bool, int, int]]
    older: list[str | int]


class Lookup(Struct, frozen=True):
    """A tenant's stored snapshot; ``revision`` -1 when there is none, ``restored`` False while that may be a loss."""

    restored: bool
    revision: int
    document: bytes


class Glance(Struct, frozen=True):
    """A shard's marks, read without a script: ``clean`` when the ledger has every change of windows."""

    generation: bytes
    state: bytes
    version: int
    watermark: int
    epoch: int
    lost: int

    @property
    def clean(self) -> bool:
        return self.version == self.watermark


class Changes(Struct, frozen=True):
    """What was announced since the last look; ``gap``: something was missed."""

    last_id: bytes
    number: int
    gap: bool
    entries: list[tuple[str, str]]


class StoredCatalogue(Struct, frozen=True):
    """The catalogue in force as Redis has it; ``compiled`` (catalogue/compiled.py) may be missing."""

    revision: int
    text: str
    compiled: bytes


SYNC_REPLY = msgspec.msgpack.Decoder(SyncReply)
COLLECTED = msgspec.msgpack.Decoder(Collected)
ENCODER = msgspec.msgpack.Encoder()
