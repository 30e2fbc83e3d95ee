"""The outbox's tables in memory, and the server that has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from msgspec import Struct, field

from tests.simulation.postgres import Postgres
from tests.simulation.tables import Tables

Lane = tuple[str, str]
NEVER = 2**60


class OutboxRow(Struct, frozen=True):
    """A row of stripe_outbox; times in ms but for those that go to Stripe."""

    tenant: str
    metric: str
    period_s: int
    hour_s: int
    number: int
    amount: int
    value: str
    identifier: str
    at_s: int
    deadline_s: int
    late: bool
    adopted: bool
    state: str
    reason: str = ""
    attempt: int = 1
    tries: int = 0
    replays: int = 0
    first_sent: int | None = None
    last_sent: int | None = None
    delivered: int | None = None
    look_at: int | None = None
    reported: int | None = None
    summed: bool = False


class LaneRow(Struct, frozen=True):
    """A row of stripe_lanes; times in ms."""

    due: int | None = None
    deadline: int = NEVER
    not_before: int | None = None
    failures: int = 0
    claim: str | None = None
    claimed_until: int | None = None
    verified: int | None = None


class Customer(Struct, frozen=True):
    """A row of billing_customers."""

    customer: str
    restored: int | None = None
    looked: bool = False


class Outbox(Tables):
    """Everything a backup holds, the outbox included."""

    windows: dict[tuple[str, str, int, int], int] = field(default_factory=dict)
    rows: dict[Lane, dict[tuple[int, int, int], OutboxRow]] = field(default_factory=dict)
    lanes: dict[Lane, LaneRow] = field(default_factory=dict)
    customers: dict[str, Customer] = field(default_factory=dict)
    decided: dict[int, tuple[int | None, int | None, tuple[str, ...]]] = field(
        default_factory=dict
    )  # touched_s, decided_ms, metered
    about: dict[str, Any] = field(default_factory=dict)  # ledger_id, pace

    def copy(self) -> Outbox:
        base = Tables.copy(self)
        return Outbox(
            **{name: getattr(base, name) for name in Tables.__struct_fields__},
            windows=dict(self.windows),
            rows={lane: dict(rows) for lane, rows in self.rows.items()},
            lanes=dict(self.lanes),
            customers=dict(self.customers),
            decided=dict(self.decided),
            about=dict(self.about),
        )


class Record(tuple[Any, ...]):
    """A row that is read by position or by name."""

    __slots__ = ()
    at: ClassVar[dict[str, int]] = {}

    def __getitem__(self, key: Any) -> Any:
        return tuple.__getitem__(self, self.at[key] if type(key) is str else key)


def record(*names: str) -> type[Record]:
    return type("Record", (Record,), {"at": {name: at for at, name in enumerate(names)}, "__slots__": ()})


STATE = record("ledger_id", "now_s", "touched_s", "metered", "meters", "new_meters_s", "newcomers")
UNDECIDED = record(
    "tenant", "metric", "period_s", "hour_s", "amount", "number", "anchor_s", "interval_months", "held",
    "items_since_s", "bills_from_s",
)  # fmt: skip
WORK = (
    "tenant", "metric", "customer", "meter", "event_name", "now_s", "anchor_s", "interval_months", "items_since_s",
    "bills_from_s", "distrusted", "restored_s", "doubtful", "period_s", "hour_s", "number", "value", "identifier",
    "attempt", "tries", "replays", "at_s", "deadline_s", "first_sent_s", "last_sent_s",
)  # fmt: skip
METRIC = record("metric", "kind", "scale", "revision")


class Meters(Struct, frozen=True):
    """What this installation bills, which no test changes: scale by metric, and when every tenant's periods begin."""

    scales: dict[str, int]
    anchor_s: int


class OutboxServer(Postgres):
    """A Postgres that has an outbox. ``named`` is told which row an identifier stands for."""

    def __init__(self, shards: int, clock: Callable[[], int], meters: Meters, new_id: Callable[[], str]) -> None:
        super().__init__(shards, clock)
        self.meters = meters
        self.new_id = new_id
        self.lane_locks: dict[Lane, Any] = {}
        self.named: Callable[[OutboxRow], None] = lambda _row: None
        self.tables: Outbox = Outbox(about={"ledger_id": new_id(), "pace": (0, 1000, 0)})


def rounded(ms: int) -> int:
    """A time as ``extract(epoch ...)::bigint`` gives it."""
    return (ms + 500) // 1000


def seconds(ms: int | None) -> int:
    return 0 if ms is None else rounded(ms)


def ever(ms: int | None) -> int:
    return NEVER if ms is None else ms
