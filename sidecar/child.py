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
import sys
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from sidecar import readings, settings
from sidecar.errors import SidecarError
from sidecar.settings import Settings
from sidecar.telemetry import Reading

READY = b"ready\n"
DESCRIPTORS = 32_768  # more than a listener takes connections
STOP_S = 1.0
_PR_SET_PDEATHSIG = 1
_ready_fd: int | None = None


class Component(Struct, frozen=True):
    """One part of a process in /readyz. Readiness needs every ``required`` one; the others are only told."""

    ok: bool
    required: bool = True
    detail: str = ""


class Member(Struct, frozen=True):
    """One process as its supervisor sees it; ``pid`` 0 while it is being restarted."""

    name: str
    kind: str
    pid: int
    socket: Path


class Inside(Protocol):
    """What a process tells about itself and can be asked to do."""

    async def reading(self) -> Reading: ...
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
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if descriptors() < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptors() -> int:
    """How many files and connections this process may have open, DESCRIPTORS where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def report_ready() -> None:
    """Tell the supervisor that this process serves; without a supervisor there is nobody to tell."""
    global _ready_fd  # noqa: PLW0603 - told once
    if _ready_fd is not None:
        os.write(_ready_fd, READY)
        os.close(_ready_fd)
        _ready_fd = None


class _Told(Struct, frozen=True, array_like=True):
    """The answer to a question; ``text`` says what was in the way."""

    ok: bool
    body: bytes = b""
    text: str = ""


class OpsSocket:
    """Answers the supervisor and ``sidecar flush`` on a unix socket in the state directory.

    A connection is a line with the question, and back the answer in msgpack: every worker has one, and no use for HTTP.
    """

    __slots__ = ("_answering", "_inside", "_path", "_server")

    def __init__(self, path: Path, inside: Inside) -> None:
        self._path = path
        self._inside = inside
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._connected, str(self._path))
        self._path.chmod(0o600)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._answering:
            _, late = await asyncio.wait(self._answering, timeout=STOP_S)
            for task in late:
                task.cancel()
        self._path.unlink(missing_ok=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._answer(reader, writer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(msgspec.msgpack.encode(await self._told(await reader.readline())))
            await writer.drain()
        except (OSError, ValueError):
            pass  # whoever asked has gone, or sends what is no line
        finally:
            writer.close()

    async def _told(self, question: bytes) -> _Told:
        match question:
            case b"reading\n":
                return _Told(ok=True, body=readings.encode(await self._inside.reading()))
            case b"components\n":
                return _Told(ok=True, body=msgspec.msgpack.encode(self._inside.components()))
            case b"flush\n":
                try:
                    await self._inside.flush()
                except SidecarError as error:
                    return _Told(ok=False, text=str(error))
                return _Told(ok=True)
        return _Told(ok=False, text="is asked something that it does not know")


async def reading(path: Path, timeout_s: float = 1.0) -> Reading:
    """Read what a child has counted; raises Unanswered."""
    return readings.decode(await _asked(path, b"reading\n", timeout_s))


async def components(path: Path, timeout_s: float = 1.0) -> dict[str, Component]:
    """Read the state of a child's parts; raises Unanswered."""
    return msgspec.msgpack.decode(await _asked(path, b"components\n", timeout_s), type=dict[str, Component])


async def flush(path: Path, timeout_s: float) -> None:
    """Have a child pass on everything it counted before the call; raises Unanswered."""
    await _asked(path, b"flush\n", timeout_s)


async def _asked(path: Path, question: bytes, timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(question)
                told = msgspec.msgpack.decode(await reader.read(), type=_Told)
            finally:
                writer.close()
    except (OSError, msgspec.DecodeError) as error:
        raise Unanswered(f"{path.name} did not answer: {str(error) or type(error).__name__}") from error
    if not told.ok:
        raise Unanswered(f"{path.name}: {told.text}")
    return told.body
