"""The application behind the gateway: echoes as JSON what reached it, and remembers it.

It also claims quota headers in its answers, so that every test sees whether a gateway lets them through.
Paths that mean something: ``/status/<n>`` answers that status, ``/redirect?to=<path>`` answers 302.
"""

from __future__ import annotations

import json

from aiohttp import web
from msgspec import Struct

from tests.servers.background import Background

CLAIMED = {"ratelimit": '"made-up";r=1;t=1', "ratelimit-policy": '"made-up";q=1', "x-quota-status": "made-up"}


class Received(Struct, frozen=True):
    """One request as the application saw it; header names in lower case, in the order they came."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value, or None; a header that came twice fails the test."""
        values = [value for known, value in self.headers if known == name]
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def names(self) -> set[str]:
        return {name for name, _ in self.headers}


class Upstream(Background):
    """Listens on a free port of the loopback, in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Received] = []
        self.port = 0

    def last(self) -> Received:
        return self.received[-1]

    async def open(self) -> None:
        runner = web.ServerRunner(web.Server(self._answer, access_log=None))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._runner = runner

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        received = Received(
            method=request.method,
            target=request.raw_path,
            headers=tuple((name.lower(), value) for name, value in request.headers.items()),
            body=await request.read(),
        )
        self.received.append(received)
        if request.path == "/redirect":
            return web.Response(status=302, headers={"location": f"http://{request.host}{request.query['to']}"})
        status = int(request.path.removeprefix("/status/")) if request.path.startswith("/status/") else 200
        text = json.dumps({"method": received.method, "target": received.target, "body": received.body.decode()})
        return web.Response(status=status, text=text, content_type="application/json", headers=CLAIMED)
