"""Clients that ask the decision listener over raw keep-alive sockets, as many and as fast as gateways do.

Guarantees: every request ends as exactly one of an answer or a loss (sent, and the connection ended without an
            answer), so that "answered allows" and "answered allows + requests in flight" are exact numbers.
Gives up:   pipelining and chunked answers, which the listener does not send.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, cast

from msgspec import Struct

ALLOWED = 200
CONNECT_S = 10.0
ANSWER_S = 20.0
RECONNECT_PAUSE_S = 0.01
RETRY_S = 0.05


class Answer(Struct, frozen=True):
    """One answer of the listener; ``elapsed_ms`` is from the sending of the request."""

    status: int
    head: bytes
    body: bytes
    elapsed_ms: float

    @property
    def allowed(self) -> bool:
        return self.status == ALLOWED

    def header(self, name: str) -> str:
        """The value of a header, "" when it is not there."""
        wanted = name.lower().encode() + b":"
        for line in self.head.split(b"\r\n")[1:]:
            if line.lower().startswith(wanted):
                return line[len(wanted) :].strip().decode("latin-1")
        return ""

    @property
    def mark(self) -> str:
        """The value of x-quota-status."""
        return self.header("x-quota-status")

    @property
    def problem(self) -> dict[str, Any]:
        """The body of a denial."""
        return dict(json.loads(self.body)) if self.body else {}

    @property
    def reason(self) -> str:
        """The reason code of a denial, "allowed" otherwise."""
        return "allowed" if self.allowed else str(self.problem.get("reason", ""))


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self) -> None:
        self.closed = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self._sent_ns = 0
        self._waiting: asyncio.Future[Answer | None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end]
        size = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(buffer) < end + 4 + size:
            return
        body, self._buffer = buffer[end + 4 : end + 4 + size], buffer[end + 4 + size :]
        elapsed_ms = (time.perf_counter_ns() - self._sent_ns) / 1_000_000
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(Answer(int(head[9:12]), head, body, elapsed_ms))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if not self.gone.done():
            self.gone.set_result(None)

    def send(self, request: bytes) -> asyncio.Future[Answer | None]:
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._sent_ns = time.perf_counter_ns()
        self._transport.write(request)
        return self._waiting

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            await self.gone


class LoadClient:
    """One client: a connection that is made again whenever it is lost.

    ``lost`` counts requests that were sent and never answered.
    """

    def __init__(self, port: int, tenant: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.lost = 0
        self._port = port
        self._headers = {"host": "api.example.com", **({"x-tenant-id": tenant} if tenant else {}), **(headers or {})}
        self._connection: _Connection | None = None
        self._requests: dict[tuple[str, str], bytes] = {}

    async def ask(
        self, path: str = "/v1/things", method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Answer | None:
        """Ask once; None when the connection ended before the answer."""
        connection = self._connection
        if connection is None or connection.closed:
            connection = await self._connect()
        request = self._requests.get((method, path)) if not headers else None
        if request is None:
            request = _request(method, path, {**self._headers, **(headers or {})})
            if not headers:
                self._requests[method, path] = request
        async with asyncio.timeout(ANSWER_S):
            answer = await connection.send(request)
        if answer is None:
            self.lost += 1
        return answer

    async def insist(
        self, path: str = "/v1/things", method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask until there is an answer."""
        while True:
            answer = await self.ask(path, method, headers)
            if answer is not None:
                return answer

    async def decided(self, path: str = "/v1/things", method: str = "GET", within_s: float = 15) -> Answer:
        """Ask until a limit decides: not while the store is away, nor while units are held elsewhere."""
        deadline = time.monotonic() + within_s
        while True:
            answer = await self.insist(path, method)
            if answer.reason not in {"store_unavailable", "limit_contended"}:
                return answer
            assert time.monotonic() < deadline, f"still {answer.reason} after {within_s} s"
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _connect(self) -> _Connection:
        """Connect; while a killed worker's queue is still there the kernel may refuse for a moment."""
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RECONNECT_PAUSE_S)
            else:
                self._connection = connection
                return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Tally:
    """What many clients saw together."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.marks: Counter[str] = Counter()
        self.elapsed_ms: list[float] = []
        self.lost = 0

    @property
    def allowed(self) -> int:
        """Answered allows."""
        return self.reasons["allowed"]

    @property
    def answered(self) -> int:
        return sum(self.reasons.values())

    def add(self, answer: Answer | None) -> None:
        if answer is None:
            self.lost += 1
            return
        self.reasons[answer.reason] += 1
        self.marks[answer.mark] += 1
        self.elapsed_ms.append(answer.elapsed_ms)

    def percentile_ms(self, percent: int) -> float:
        """The latency that so many percent of the answers did not exceed."""
        return sorted(self.elapsed_ms)[len(self.elapsed_ms) * percent // 100]


Turn = Callable[[LoadClient, Tally], Awaitable[bool]]


async def crowd(port: int, clients: int, tenants: list[str], turn: Turn, tally: Tally | None = None) -> Tally:
    """Let many clients take turns until each has had enough (its turn returned False); what they saw."""
    tally = tally or Tally()

    async def one(number: int) -> None:
        async with LoadClient(port, tenants[number % len(tenants)]) as client:
            while await turn(client, tally):
                pass

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(one(number))
    return tally


class Traffic:
    """Steady traffic in the background of a test; entering starts it, leaving stops it after each last answer.

    ``rate_per_s`` spreads that many requests a second over the clients; 0 is as fast as it goes.
    """

    def __init__(self, port: int, tenants: list[str], *, clients: int = 20, rate_per_s: int = 0) -> None:
        self.tally = Tally()
        self._port = port
        self._tenants = tenants
        self._clients = clients
        self._rate_per_s = rate_per_s
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def reached(self, allowed: int, within_s: float = 20) -> None:
        """Wait until so many requests were allowed from now on."""
        wanted = self.tally.allowed + allowed
        await until(lambda: self.tally.allowed >= wanted, within_s)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self._clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures and error is None:
            raise failures[0]

    async def _run(self, number: int) -> None:
        began = time.monotonic()
        asked = 0
        async with LoadClient(self._port, self._tenants[number % len(self._tenants)]) as client:
            while not self._stop.is_set():
                self.tally.add(await client.ask())
                asked += 1
                await asyncio.sleep(self._pause_s(began, asked))

    def _pause_s(self, began: float, asked: int) -> float:
        """How long a client of a given rate waits for its next turn; late ones catch up."""
        if not self._rate_per_s:
            return 0
        return max(0.0, began + asked * self._clients / self._rate_per_s - time.monotonic())


async def until(condition: Callable[[], bool], within_s: float = 10) -> float:
    """Wait for a condition with a deadline; returns how long it took in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + within_s, f"did not come true within {within_s} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def _request(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} /envoy{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
