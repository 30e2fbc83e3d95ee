"""Two decision listeners that get the same bytes: one remembers heads, the other parses each; they must not differ.

Compared after every step: what was asked (identity, rule, request id), what was written, what the connections wait for
and how they are to go on, and every counter but those of time.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from sidecar.catalogue.load import parse
from sidecar.catalogue.model import RouteRule
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.enforcement.decision import Decision, Identity, LimitView
from sidecar.enforcement.fast_path import Check
from sidecar.gateway.connection import Connection
from sidecar.gateway.listener import DecisionListener

SECRET = "a-secret-of-the-gateway"
_CATALOGUE = """
identity: [{header: %s}, {api_key: authorization, scheme: Bearer}]
user_header: x-user-id
metrics: {api_calls: {}}
anonymous_plan: free
plans: {free: {limits: {api_calls: 100}}}
routes:
  - {name: dear, match: "POST /v1/dear/**", costs: {api_calls: 10}}
  - {name: cheap, match: "/v1/cheap/*", costs: {api_calls: 2}}
%sdefault: {costs: {api_calls: 1}}
"""
_HOSTED = '  - {name: admin, match: "admin.example/**", costs: {api_calls: 5}}\n'
_CATALOGUES = [
    parse(_CATALOGUE % ("x-tenant-id", ""), "fuzz"),
    parse(_CATALOGUE % ("x-tenant-id", _HOSTED), "fuzz"),
    parse(_CATALOGUE % ("x-b3-traceid", _HOSTED), "fuzz"),
]
POLICIES = [Policy(one, RouteTable(one.routes), number) for number, one in enumerate(_CATALOGUES)]
_LIMIT = LimitView("api_calls", 100, 60, 40, 3_600, 60)


class _Allowed:
    """What the short way answers: the same as ``Judge.decide`` would."""

    def __init__(self, decision: Decision) -> None:
        self.template: object = None
        self.remaining, self.reset_s = _LIMIT.remaining, _LIMIT.reset_s
        self._decision = decision

    def decision(self, remaining: int, reset_s: int) -> Decision:
        return self._decision


class Judge:
    """Decides by the tenant's first letter: "w" waits, "d" is denied, "b" is a bug; the rest is allowed."""

    def __init__(self) -> None:
        self.policy = POLICIES[0]
        self.asked: list[tuple[Identity, RouteRule, str]] = []

    def decide(self, identity: Identity, route: RouteRule, request_id: str) -> Decision | None:
        tenant = identity.tenant or ""
        self.asked.append((identity, route, request_id))
        if tenant.startswith("w"):
            return None
        if tenant.startswith("b"):
            raise RuntimeError("bug")
        if tenant.startswith("d"):
            return Decision(allow=False, status=429, reason="limit_reached", quota_status="denied", tenant=tenant)
        return Decision(True, 200, "allowed", "ok", tenant, f"{route.name}.{identity.user or ''}", (), _LIMIT)

    def get_to_know(self, check: Check) -> None:
        check.known = True  # type: ignore[assignment]

    def allow_known(self, check: Check, request_id: bytes) -> Any:
        if check.known is None:
            return None
        decision = self.decide(check.identity, check.route, request_id.decode())
        return _Allowed(decision) if decision is not None else None

    async def decide_waiting(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        return Decision(True, 200, "allowed", "ok", identity.tenant or "", route.name, (), _LIMIT)


class Times:
    """Clocks that stand still."""

    def wall_s(self) -> int:
        return 1_800_000_000

    def monotonic_ms(self) -> int:
        return 1_000


class Wire:
    """The transport of one connection; bytes that come while it reads nothing wait, as in a kernel."""

    def __init__(self) -> None:
        self.log: list[bytes | str] = []
        self.paused = False
        self.closing = False
        self.waiting = b""

    def write(self, data: bytes) -> None:
        assert not self.closing, "written after the end"
        self.log.append(bytes(data))

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.log.append("eof")

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def set_write_buffer_limits(self, high: int) -> None:
        """Bounded enough here."""


class Place(DecisionListener):
    """A listener without sockets."""

    def __init__(self, *, remembers: bool) -> None:
        self.judge = Judge()
        super().__init__(self.judge, secrets=(SECRET,), clock=Times())
        self.works: list[Coroutine[Any, Any, None]] = []
        self.ends: list[tuple[Connection, Wire]] = []
        self.recalled = 0
        self._remembers = remembers
        self._recall = self.gate.recall
        self.gate.recall = self.recall  # type: ignore[method-assign]

    def recall(self, data: bytes, *, trusted: bool) -> Any:
        answer = self._recall(data, trusted=trusted) if self._remembers else None
        self.recalled += answer is not None
        return answer

    def spawn(self, work: Coroutine[Any, Any, None]) -> Any:
        self.works.append(work)
        return work

    def connect(self, *, trusted: bool) -> None:
        connection, wire = Connection(self, trusted=trusted), Wire()
        connection.connection_made(wire)  # type: ignore[arg-type]
        self.ends.append((connection, wire))

    def send(self, number: int, data: bytes) -> None:
        connection, wire = self.ends[number]
        wire.waiting += data
        self._deliver(connection, wire)

    def work(self) -> None:
        """Let those that wait for the store have their answers."""
        works, self.works = self.works, []
        for work in works:
            with suppress(StopIteration):
                work.send(None)
        for connection, wire in self.ends:
            self._deliver(connection, wire)

    def use(self, number: int) -> None:
        """Put another catalogue into force."""
        self.judge.policy = POLICIES[number % len(POLICIES)]
        self.gate.refresh()

    def seen(self) -> Any:
        counters = {name: getattr(self.counters, name) for name in self.counters.__slots__ if "latency" not in name}
        names = ("_open", "_last", "_refusing", "_ignored", "_found", "_url", "_in_body", "_special", "since_ms")
        state = [
            {name: getattr(connection, name) for name in names}
            | {"wire": (wire.log, wire.paused, wire.closing)}
            | {"waiting": (len(connection._queue), bytes(connection._unread))}
            for connection, wire in self.ends
        ]
        return self.judge.asked, state, counters

    def _deliver(self, connection: Connection, wire: Wire) -> None:
        if wire.waiting and not wire.paused and not wire.closing:
            data, wire.waiting = wire.waiting, b""
            connection.data_received(data)


class Twins:
    """Both of them. Connections 0 and 1 are trusted, 2 and 3 have to bring the secret; a closed one is replaced."""

    def __init__(self) -> None:
        self._places = Place(remembers=True), Place(remembers=False)
        for place in self._places:
            for trusted in (True, True, False, False):
                place.connect(trusted=trusted)

    def send(self, number: int, data: bytes) -> None:
        for place in self._places:
            place.send(number, data)
        self._compare()

    def work(self) -> None:
        for place in self._places:
            place.work()
        self._compare()

    def use(self, number: int) -> None:
        for place in self._places:
            place.use(number)
        self._compare()

    @property
    def recalled(self) -> int:
        """Requests that were answered from memory."""
        return self._places[0].recalled

    def close(self) -> None:
        """The end of all connections."""
        for place in self._places:
            while place.works:
                place.work()

    def _compare(self) -> None:
        one, other = (place.seen() for place in self._places)
        assert one == other
        for place in self._places:
            place.judge.asked.clear()
            for number, (connection, wire) in enumerate(place.ends):
                wire.log.clear()
                if wire.closing or connection._refusing:
                    connection.connection_lost(None)
                    place.connect(trusted=number < 2)
                    place.ends[number] = place.ends.pop()
