"""How much of the parser's throughput is left after a whole decision.

Compares, on one core and in the same run:

* ``floor``: a bare asyncio protocol on uvloop and httptools that reads no headers and writes one constant answer;
* ``headers``: the same, but every header reaches Python: what any server pays that looks at them;
* ``constant``: the decision listener with all its bounds, but a constant answer in place of a decision;
* ``decision``: the decision listener with all its bounds and a trivial enforcer that allows from memory;
* ``aiohttp``: a constant answer of aiohttp's low-level server.

The load (wrk where there is one) runs on another core. Next to requests/s stands the CPU time per request of the
server itself, which other load on the machine disturbs less. Rounds alternate, and the median counts.

    python bench/listener.py [--seconds 3] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import httptools
import uvloop
from aiohttp import web

from bench import place, wrk
from sidecar.catalogue.model import Catalogue, IdentityRule, RouteRule
from sidecar.catalogue.policy import Policy
from sidecar.catalogue.routes import RouteTable
from sidecar.enforcement.decision import Decision, Identity, LimitView
from sidecar.enforcement.fast_path import Check
from sidecar.gateway.listener import DecisionListener

MODES = ("floor", "headers", "constant", "decision", "aiohttp")
# As long as an allowed answer, which the kernel has to carry and the load generator to read in both cases.
CONSTANT = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\nx-quota-status: ok\r\n"
    b"x-quota-tenant: tenant-123\r\nx-quota-plan: standard\r\nx-quota-feature-branding: custom\r\n"
    b'x-quota-feature-llm: large\r\nRateLimit-Policy: "api_calls";q=100000000;w=2592000\r\n'
    b'RateLimit: "api_calls";r=99999999;t=86400\r\nx-request-id: 7c4b1a52-5a9e-4f38-9d6e-0a6c6f9f4a10\r\n\r\n'
)
HEADERS = {
    "x-tenant-id": "tenant-123",
    "authorization": "Bearer qs_0123456789abcdef",
    "x-request-id": "7c4b1a52-5a9e-4f38-9d6e-0a6c6f9f4a10",
    "content-length": "0",
}
PATH = "/envoy/v1/agents/42/run?mode=fast"


class Floor(asyncio.Protocol):
    """A constant answer behind the parser."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(CONSTANT)  # type: ignore[attr-defined]


class Headers(Floor):
    """The same, with the target and all headers in a dictionary."""

    def __init__(self) -> None:
        self.url = b""
        self.found: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found[name] = value

    def on_message_complete(self) -> None:
        self.found = {}
        self.transport.write(CONSTANT)  # type: ignore[attr-defined]


class Trivial:
    """Allows everything, with numbers that change."""

    def __init__(self) -> None:
        routes = (
            *(RouteRule(name=f"route-{n}", path=f"/v1/things-{n}/{{id}}", costs={"api_calls": n}) for n in range(200)),
            RouteRule(name="run", methods=("GET", "POST"), path="/v1/agents/{id}/run", costs={"api_calls": 1}),
        )
        identity = (
            IdentityRule(kind="header", header="x-tenant-id"),
            IdentityRule(kind="api_key", header="authorization", scheme="Bearer"),
        )
        catalogue = Catalogue(metrics={}, plans={}, routes=routes, identity=identity)
        self.policy = Policy(catalogue, RouteTable(routes), 1)
        self.used = 0
        self.features = (("branding", "custom"), ("llm", "large"))

    def decide(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        self.used += route.costs["api_calls"]
        view = LimitView("api_calls", 100_000_000, self.used, 100_000_000 - self.used, 2_592_000, 86_400, 0)
        return Decision(True, 200, "allowed", "ok", identity.tenant or "", "standard", self.features, view)

    def allow_known(self, check: Check, request_id: bytes) -> None:
        """Leave everything to ``decide``."""

    def get_to_know(self, check: Check) -> None:
        """Forget it."""

    async def decide_waiting(self, identity: Identity, route: RouteRule, request_id: str) -> Decision:
        return self.decide(identity, route, request_id)


async def aiohttp_constant(_: web.BaseRequest) -> web.Response:
    """A constant answer as aiohttp gives one."""
    return web.Response()


async def serve(mode: str, at: str) -> None:
    """Serve on a free port, or on a unix socket ``at`` a path, and print where."""
    loop = asyncio.get_running_loop()
    if mode in {"constant", "decision"}:
        listener = DecisionListener(Trivial())
        if mode == "constant":
            listener.gate.decide = lambda _index, _method, _url, _found: CONSTANT  # type: ignore[method-assign, assignment]
        await listener.start(["127.0.0.1:0"])
        where = listener.addresses[0].rpartition(":")[2]
    elif at:
        await loop.create_unix_server(Floor, at)
        Path(at).chmod(0o777)
        where = at
    else:
        makes: dict[str, Callable[[], asyncio.BaseProtocol]] = {
            "floor": Floor,
            "headers": Headers,
            "aiohttp": web.Server(aiohttp_constant),
        }
        server = await loop.create_server(makes[mode], "127.0.0.1", 0)
        where = str(server.sockets[0].getsockname()[1])
    print(where, flush=True)
    await asyncio.Event().wait()


class Server(NamedTuple):
    """A server of this file: its process, and its port or the path of its socket."""

    pid: int
    at: str


@contextlib.contextmanager
def serving(mode: str, *, core: int | None = None, at: str = "") -> Iterator[Server]:
    """A server on one core (the first one, if none is named), on a free port or on a unix socket ``at`` a path."""
    on = place.first_core() if core is None else core
    command = ["taskset", "-c", str(on), sys.executable, __file__, "--serve", mode, "--at", at]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Server(process.pid, process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


def measure(mode: str, seconds: float, connections: int) -> tuple[float, float]:
    """Requests a second, and microseconds of server CPU a request."""
    with serving(mode) as server:
        used_us = place.cpu_us(server.pid)
        url = f"http://127.0.0.1:{server.at}{PATH}"
        rate, requests = wrk.drive(url, wrk.headers(HEADERS), seconds, connections)
        return rate, (place.cpu_us(server.pid) - used_us) / requests


def compare(seconds: float, rounds: int, connections: int) -> dict[str, Any]:
    """Medians of alternating rounds, and their ratios to the floor."""
    seen: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        for mode in MODES:
            seen[mode].append(measure(mode, seconds, connections))
    result: dict[str, Any] = {
        mode: {
            "rps": round(statistics.median(rate for rate, _ in runs)),
            "cpu_us": round(statistics.median(cpu for _, cpu in runs), 2),
        }
        for mode, runs in seen.items()
    }
    for mode in MODES[1:]:
        result[mode]["rps_ratio"] = round(result[mode]["rps"] / result["floor"]["rps"], 3)
        result[mode]["cpu_ratio"] = round(result["floor"]["cpu_us"] / result[mode]["cpu_us"], 3)
    result["decision"]["listener_rps_ratio"] = round(result["decision"]["rps"] / result["constant"]["rps"], 3)
    result["decision"]["listener_cpu_ratio"] = round(result["constant"]["cpu_us"] / result["decision"]["cpu_us"], 3)
    result["machine"] = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "httptools": version("httptools"),
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--at", default="", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.serve:
        uvloop.run(serve(given.serve, given.at))
        return
    result = compare(given.seconds, given.rounds, given.connections)
    if given.json:
        print(json.dumps(result))
        return
    print(f"{Path(__file__).name}: {result['machine']}, wrk -t1 -c{given.connections}")
    for mode in MODES:
        numbers = result[mode]
        ratios = f"  ratio {numbers['rps_ratio']:.2f} (CPU {numbers['cpu_ratio']:.2f})" if mode != "floor" else ""
        print(f"{mode:10} {numbers['rps']:>8,} requests/s  {numbers['cpu_us']:5.2f} us CPU a request{ratios}")
    own = result["decision"]
    print(f"decision to constant: ratio {own['listener_rps_ratio']:.2f} (CPU {own['listener_cpu_ratio']:.2f})")


if __name__ == "__main__":
    main()
