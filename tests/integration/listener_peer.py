"""The two neighbours of a decision listener in its tests: an enforcer that does as told, and a raw HTTP peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sidecar.catalogue.model import Catalogue, IdentityRule, RouteRule
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.enforcement.decision import Decision, Identity
from sidecar.enforcement.fast_path import Check
from sidecar.gateway.listener import DecisionListener

ROUTES = (RouteRule(name="rest"),)
IDENTITY = (
    IdentityRule(kind="header", header="x-tenant-id"),
    IdentityRule(kind="api_key", header="authorization", scheme="Bearer"),
)


class Judge:
    """Answers by tenant: "wait..." waits until released, "deny" is denied, "bug" raises, everybody else is allowed.

    The plan of an answer is the request id, so that a test sees which request an answer belongs to.
    """

    def __init__(self) -> None:
        catalogue = Catalogue(metrics={}, plans={}, routes=ROUTES, identity=IDENTITY)
        self.policy = Policy(catalogue, RouteTable(ROUTES), 1)
        self.asked: list[tuple[str | None, str]] = []
        self.waiting = asyncio.Event()
        self.released = asyncio.Event()

    def decide(self, identity: Identity, route: RouteRule, request_id: str) -> Decision | None:
        tenant = identity.tenant or ""
        if tenant.startswith("wait"):
            return None
        self.asked.append((identity.tenant, request_id))
        if tenant == "bug":
            raise RuntimeError("bug")
        if tenant == "deny":
            return Decision(allow=False, status=429, reason="limit_reached", quota_status="denied")
        return Decision(allow=True, status=200, reason="allowed", tenant=tenant, plan=request_id)

    def allow_known(self, check: Check, request_id: bytes) -> None:
        """Leave everything to ``decide``."""

    def get_to_know(self, check: Check) -> None:
        """Forget it."""

    async def decide_waiting(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        self.waiting.set()
        await self.released.wait()
        self.asked.append((identity.tenant, request_id))
        return Decision(allow=True, status=200, reason="allowed", tenant=identity.tenant or "", plan=request_id)


class Times:
    """Clocks that stand still until a test moves them."""

    def __init__(self) -> None:
        self.ms = 1_000

    def wall_s(self) -> int:
        return 1_800_000_000

    def monotonic_ms(self) -> int:
        return self.ms


class Answer:
    """Status, headers and body of one answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def id(self) -> str:
        """The request id that the judge put into the answer."""
        return self.headers.get("x-quota-plan", "")


class Peer:
    """A raw connection to a listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)

    async def answer(self) -> Answer:
        """The next answer."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode("latin-1")
        line, *fields = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        body = await asyncio.wait_for(self.reader.readexactly(int(headers.get("content-length", 0))), 5)
        return Answer(int(line.split()[1]), headers, body)

    async def ask(self, data: bytes | str) -> Answer:
        self.send(data)
        return await self.answer()

    async def closed(self) -> bytes:
        """What comes until the listener closes."""
        try:
            return await asyncio.wait_for(self.reader.read(), 5)
        except ConnectionError:
            return b""
        finally:
            await self.close()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


def check(
    tenant: str = "acme", request_id: str = "", *more: str, path: str = "/envoy/v1/x", method: str = "GET"
) -> str:
    """A check as Envoy sends it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: api.example.com", f"x-tenant-id: {tenant}"]
    if request_id:
        lines.append(f"x-request-id: {request_id}")
    return "\r\n".join([*lines, *more, "", ""])


async def connect(address: str) -> Peer:
    if address.startswith("unix:"):
        return Peer(*await asyncio.open_unix_connection(address[5:]))
    host, _, port = address.rpartition(":")
    return Peer(*await asyncio.open_connection(host.strip("[]"), int(port)))


@asynccontextmanager
async def listening(judge: Judge, *addresses: str, **options: Any) -> AsyncIterator[DecisionListener]:
    """A listener on a free port, or on the given addresses."""
    listener = DecisionListener(judge, **options)
    await listener.start(addresses or ("127.0.0.1:0",))
    try:
        yield listener
    finally:
        judge.released.set()
        await listener.stop(0.2)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something has happened."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)
