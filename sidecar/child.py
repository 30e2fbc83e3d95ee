"""A supervised process, seen from inside: where its settings come from, its end with the parent, its ops socket.

Guarantees: secrets reach a child through a pipe, never through its arguments or environment; a child never outlives
            its supervisor, and nothing counted is lost by that, since the journal is in the page cache already.
Gives up:   a clean shutdown when the supervisor itself is killed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web
from msgspec import Struct

from sidecar import exposition, settings
from sidecar.errors import SidecarError
from sidecar.settings import Settings
from sidecar.telemetry import Reading

READY = b"ready\n"
DESCRIPTORS = 32_768  # more than a listener takes connections
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

    __slots__ = ("_path", "_runner")

    def __init__(self, path: Path, inside: Inside) -> None:
        self._path = path
        app = web.Application()
        app.router.add_get("/reading", _reading(inside))
        app.router.add_get("/components", _components(inside))
        app.router.add_post("/flush", _flush(inside))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)

    async def start(self) -> None:
        await self._runner.setup()
        self._path.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(self._path)).start()
        self._path.chmod(0o600)

    async def stop(self) -> None:
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


async def reading(path: Path, timeout_s: float = 1.0) -> Reading:
    """Read what a child has counted; raises Unanswered."""
    return exposition.decode(await _call(path, "GET", "/reading", timeout_s))


async def components(path: Path, timeout_s: float = 1.0) -> dict[str, Component]:
    """Read the state of a child's parts; raises Unanswered."""
    return msgspec.json.decode(await _call(path, "GET", "/components", timeout_s), type=dict[str, Component])


async def flush(path: Path, timeout_s: float) -> None:
    """Have a child pass on everything it counted before the call; raises Unanswered."""
    await _call(path, "POST", "/flush", timeout_s)


async def _call(path: Path, method: str, target: str, timeout_s: float) -> bytes:
    timeout = ClientTimeout(total=timeout_s)
    try:
        async with (
            ClientSession(connector=UnixConnector(str(path)), timeout=timeout) as session,
            session.request(method, f"http://child{target}") as response,
        ):
            body = await response.read()
            if response.status != web.HTTPOk.status_code:
                raise Unanswered(f"{path.name}: {body.decode(errors='replace')}")
            return body
    except (ClientError, OSError) as error:
        raise Unanswered(f"{path.name} did not answer: {str(error) or type(error).__name__}") from error


Handler = Callable[[web.Request], Awaitable[web.Response]]


def _reading(inside: Inside) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=exposition.encode(inside.reading()))

    return handle


def _components(inside: Inside) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(inside.components()), content_type="application/json")

    return handle


def _flush(inside: Inside) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        try:
            await inside.flush()
        except SidecarError as error:
            return web.Response(status=503, text=str(error))
        return web.Response(text="flushed")

    return handle
