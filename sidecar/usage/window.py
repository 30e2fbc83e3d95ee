"""Windows: what was counted for one (tenant, series, billing period, hour) by this writer.

A series is a metric, or ``metric@limit:value`` for a limit with a scope of its own. Values are cumulative and only
grow.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from sidecar.memo import shared
from sidecar.usage.journal import Cell, record_bytes

TIME_S_MAX = 2**40  # of a period or an hour; every store behind us can hold such a time
SPANS_MAX = 4_096

Span = tuple[str, int, int]
_spans: dict[Span, Span] = {}  # of one metric and hour there is one for each tenant


class WindowKey(NamedTuple):
    """Identity of a window. ``period``: start of the billing period (unix s); ``hour``: unix seconds // 3600, UTC."""

    tenant: str
    series: str
    period: int
    hour: int

    def encode(self) -> bytes:
        """Form of the key in a journal; ids hold no NUL."""
        return f"{self.tenant}\0{self.series}\0{self.period}\0{self.hour}".encode()

    @classmethod
    def decode(cls, raw: bytes) -> WindowKey:
        """Reverse of ``encode``; raises ValueError for anything else, such as a time that nobody lives to see."""
        tenant, series, period, hour = raw.decode().split("\0")
        key = cls(tenant, series, int(period), int(hour))
        if key.encode() != raw or abs(key.period) > TIME_S_MAX or not 0 <= key.hour * 3_600 <= TIME_S_MAX:
            raise ValueError("not the key of a window")
        return key


class Mark:
    """How far a shard's change counter was when Redis confirmed windows, one for those of about the same time.

    ``version`` may grow with later ones of them. It is one that Redis has given in the writer's generation.
    """

    __slots__ = ("version",)

    def __init__(self, version: int = 0) -> None:
        self.version = version


NO_MARK = Mark()


class Owner(Protocol):
    """Whose window it is."""

    @property
    def tenant(self) -> str: ...


class Window:
    """A window's cell in the journal, and how much of it Redis and the ledger are known to have.

    ``id`` tells apart the windows of one tenant: (series, period, hour). ``acknowledged`` is the value Redis last
    confirmed in this generation, ``version`` the shard's change counter then or a moment later: once the ledger's
    watermark reaches it, the ledger has at least that value. The hot path adds to ``view[index]``, which is the value.
    """

    __slots__ = ("acknowledged", "id", "index", "mark", "owner", "view")

    def __init__(self, owner: Owner, span: Span, cell: Cell) -> None:
        self.owner = owner
        self.id = shared(_spans, span, SPANS_MAX)
        self.acknowledged = 0
        self.mark = NO_MARK
        self.place(cell)

    def place(self, cell: Cell) -> None:
        """Count there from now on."""
        self.view = cell.view
        self.index = cell.index

    @property
    def key(self) -> WindowKey:
        """Identity among all windows."""
        return WindowKey(self.owner.tenant, *self.id)

    @property
    def cell(self) -> Cell:
        """Its place in the journal."""
        return Cell(self.view, self.index, record_bytes(self.key.encode()))

    @property
    def version(self) -> int:
        """The watermark from which on the ledger has at least what Redis confirmed."""
        return self.mark.version

    @property
    def value(self) -> int:
        return int(self.view[self.index])

    @property
    def dirty(self) -> bool:
        """Whether Redis does not have all of it, as far as is known."""
        return self.acknowledged != self.view[self.index]

    def in_ledger(self, watermark: int) -> bool:
        """Whether the ledger has everything counted so far."""
        return self.version <= watermark and self.acknowledged == self.value
