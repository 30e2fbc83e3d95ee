"""A supervised process, seen from inside: where its settings come from, its end with the parent, its ops socket.

Guarantees: secrets reach a child through a pipe, never through its arguments or environment; a child never outlives
            its supervisor, and nothing counted is lost by that, since the journal is in the page cache already.
Gives up:   a clean shutdown when the supervisor itself is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Protocol

import msgspec
from httptools import HttpParserError, HttpResponseParser
from msgspec import Struct

from sidecar import readings, settings
from sidecar.errors import SidecarError
from sidecar.plain_http.messages import Answer, Request, json, problem
from sidecar.plain_http.server import Handler, Server
from sidecar.settings import Settings
from sidecar.telemetry import Reading

READY = b"ready\n"
DESCRIPTORS = 32_768  # more than a listener takes connections
READ_BYTES = 65_536
OK = 200
_PR_SET_PDEATHSIG = 1
_ready_fd: int | None = None


class Component(Struct, frozen=True):
    """One part of a process in /readyz. Readiness needs every ``required`` one; the others are only told."""

    ok: bool
    required: bool = True
    detail: str = ""


class Inside(Protocol):
    """What a process tells about itself and can be asked to do."""

    def reading(self) -> Reading: ...
    def components(self) -> dict[str, Component]: ...
    async def flush(self) -> None: ...


class Unanswered(SidecarError):
    """A process of this program did not answer on its ops socket; it may be starting or gone."""

    transient = True


def begin(parent: int, ready_fd: int) -> Settings:
    """Become a child: die with the parent, and read the settings it writes to our standard input."""
    global _ready_fd  # noqa: PLW0603 - one process has one parent to tell
    _ready_fd = ready_fd
    _allow_descriptors()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above could notice
        sys.exit(1)
    return settings.load(msgspec.json.decode(sys.stdin.buffer.read(), type=dict[str, str]))


def _allow_descriptors() -> None:
    """Use what the system lets us have: the soft limit is often 1,024, for programs that are older than poll."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def report_ready() -> None:
    """Tell the supervisor that this process serves; without a supervisor there is nobody to tell."""
    global _ready_fd  # noqa: PLW0603 - told once
    if _ready_fd is not None:
        os.write(_ready_fd, READY)
        os.close(_ready_fd)
        _ready_fd = None


class OpsSocket:
    """Answers the supervisor and ``sidecar flush`` on a unix socket in the state directory."""

    __slots__ = ("_path", "_server")

    def __init__(self, path: Path, inside: Inside) -> None:
        self._path = path
        self._server = Server(
            {
                ("GET", "/reading"): _reading(inside),
                ("GET", "/components"): _components(inside),
                ("POST", "/flush"): _flush(inside),
            }
        )

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.settimeout(0)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        await self._server.start(listener)

    async def stop(self) -> None:
        await self._server.stop()
        self._path.unlink(missing_ok=True)


async def reading(path: Path, timeout_s: float = 1.0) -> Reading:
    """Read what a child has counted; raises Unanswered."""
    return readings.decode(await _call(path, "GET", "/reading", timeout_s))


async def components(path: Path, timeout_s: float = 1.0) -> dict[str, Component]:
    """Read the state of a child's parts; raises Unanswered."""
    return msgspec.json.decode(await _call(path, "GET", "/components", timeout_s), type=dict[str, Component])


async def flush(path: Path, timeout_s: float) -> None:
    """Have a child pass on everything it counted before the call; raises Unanswered."""
    await _call(path, "POST", "/flush", timeout_s)


async def _call(path: Path, method: str, target: str, timeout_s: float) -> bytes:
    request = f"{method} {target} HTTP/1.1\r\nHost: child\r\nConnection: close\r\n\r\n"
    answer = _Answer()
    parser = HttpResponseParser(answer)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(request.encode())
                while not answer.whole:
                    data = await reader.read(READ_BYTES)
                    if not data:
                        raise ConnectionResetError("it hung up")
                    parser.feed_data(data)
            finally:
                writer.close()
    except (HttpParserError, OSError) as error:
        raise Unanswered(f"{path.name} did not answer: {str(error) or type(error).__name__}") from error
    if parser.get_status_code() != OK:
        raise Unanswered(f"{path.name}: {answer.body.decode(errors='replace')}")
    return bytes(answer.body)


class _Answer:
    """What the parser of an answer calls."""

    __slots__ = ("body", "whole")

    def __init__(self) -> None:
        self.body = bytearray()
        self.whole = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True


def _reading(inside: Inside) -> Handler:
    async def handle(_: Request) -> Answer:
        return Answer(200, readings.encode(inside.reading()), "application/msgpack")

    return handle


def _components(inside: Inside) -> Handler:
    async def handle(_: Request) -> Answer:
        return json(inside.components())

    return handle


def _flush(inside: Inside) -> Handler:
    async def handle(_: Request) -> Answer:
        try:
            await inside.flush()
        except SidecarError as error:
            return problem(503, str(error))
        return json("flushed")

    return handle
