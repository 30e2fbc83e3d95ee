"""The parent of all processes of one program: starts, watches, replaces and stops them, and serves ops.

Guarantees: listeners are claimed before any child starts; a child that ends unasked is replaced at once, and later and
            later if it keeps ending; workers stop before the flusher, so their last counts reach the ledger.
Gives up:   a child that cannot even start the first time: then the program ends, since its settings are wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from sidecar import address, logs
from sidecar import settings as settings_module
from sidecar.child import READY, Component, Member
from sidecar.clock import Clock
from sidecar.errors import SettingsInvalid, SidecarError
from sidecar.settings import Settings
from sidecar.state import State
from sidecar.telemetry import Reading

if TYPE_CHECKING:
    from sidecar.ops import ClockMoved, Ops

READY_TIMEOUT_S = 60
STEADY_S = 10.0  # a child that lived so long is replaced without delay
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0

log = logging.getLogger(__name__)


class ChildFailed(SidecarError):
    """A child process could not start; what it wrote above this line says why."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


Command = Callable[[str, int, int], list[str]]


def command(kind: str, index: int, ready_fd: int) -> list[str]:
    """Build the command line of a child; everything else reaches it through its standard input."""
    inside = ["--index", str(index), "--parent", str(os.getpid()), "--ready-fd", str(ready_fd)]
    return [sys.executable, "-m", "sidecar", "_worker" if kind == "authz" else "_backoffice", *inside]


class _Child:
    """One place for a process, filled again whenever the process in it ends."""

    __slots__ = ("begun", "index", "kind", "name", "pid", "process", "ready", "restarts", "socket")

    def __init__(self, kind: str, index: int, state: State) -> None:
        self.kind = kind
        self.index = index
        self.name = f"authz-{index}" if kind == "authz" else kind
        self.socket = state.ops_socket(self.name)
        self.process: asyncio.subprocess.Process | None = None
        self.pid = 0
        self.begun = asyncio.Event()  # it runs and has its settings
        self.ready = asyncio.Event()
        self.restarts = 0


class Supervisor:
    """Runs the workers and the backoffice of one set of settings; ``settings`` holds the real ports after start."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        *,
        child_command: Command = command,
        clock_moved: ClockMoved | None = None,
        catalogue_file: Callable[[], Component] | None = None,
    ) -> None:
        self.settings = settings
        self._clock_moved = clock_moved
        self._catalogue_file = catalogue_file
        self._state = state
        self._command = child_command
        self._claims: list[socket.socket] = []
        self._children: list[_Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._ops: Ops | None = None

    async def start(self) -> None:
        """Claim every address, start every child and return when all are ready; cleans up if that fails."""
        try:
            self._claim()
            await self._start_children()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the workers, then the backoffice, each within the drain time, then by force; then ops."""
        self._stopping = True
        for kind in ("authz", "backoffice"):
            await asyncio.gather(*(self._end(child) for child in self._children if child.kind == kind))
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._ops is not None:
            await self._ops.stop()
        self._release()

    def kill(self) -> None:
        """End every child by force; for somebody who asks a second time."""
        for child in self._children:
            if child.process is not None:
                _signal(child.process, signal.SIGKILL)

    def members(self) -> list[Member]:
        return [Member(child.name, child.kind, child.pid, child.socket) for child in self._children]

    def restarts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for child in self._children:
            counts[child.kind] = counts.get(child.kind, 0) + child.restarts
        return counts

    def components(self) -> dict[str, Component]:
        """What the supervisor says of itself in /readyz."""
        return {} if self._catalogue_file is None else {"catalogue_file": self._catalogue_file()}

    def reading(self) -> Reading:
        """What the supervisor adds to the metrics of its children."""
        if self._catalogue_file is None:
            return {}
        return {"sidecar_catalogue_reload_ok": {(): [int(self._catalogue_file().ok)]}}

    def pids(self) -> dict[str, list[int]]:
        """The living processes by kind."""
        found: dict[str, list[int]] = {}
        for child in self._children:
            found.setdefault(child.kind, []).extend([child.pid] if child.pid else [])
        return found

    def _claim(self) -> None:
        settings = self.settings
        problems: list[str] = []

        def claimed(text: str) -> str:
            try:
                exact, holder = address.reserve(text)
            except SettingsInvalid as error:
                problems.append(str(error))
                return text
            self._claims.append(holder)
            return exact

        wanted: dict[str, object] = {"ops_listen": claimed(settings.ops_listen)}
        if settings.has_role("authz"):
            wanted["authz_listen"] = tuple(claimed(text) for text in settings.authz_listen)
            wanted["local_listen"] = claimed(settings.local_listen)
        if settings.has_role("control"):
            wanted["control_listen"] = claimed(settings.control_listen)
        if problems:
            raise SettingsInvalid("\n".join(problems))
        self.settings = structs.replace(settings, **wanted)

    async def _start_children(self) -> None:
        if self.settings.has_role("authz"):
            self._children += [_Child("authz", index, self._state) for index in range(self.settings.workers)]
        if self.settings.has_role("flusher") or self.settings.has_role("control"):
            self._children.append(_Child("backoffice", 0, self._state))
        self._keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        await self._all([child.begun for child in self._children])
        await self._start_ops()
        await self._all([child.ready for child in self._children])

    async def _start_ops(self) -> None:
        """Only now, so that the children import beside us what they need."""
        from sidecar.ops import Ops  # noqa: PLC0415 - aiohttp takes longer to import than all the rest here

        clock = Clock(Path(self.settings.clock_file) if self.settings.clock_file else None)
        self._ops = Ops(self.settings.ops_listen, self, clock, self._clock_moved)
        await self._ops.start()

    async def _all(self, events: list[asyncio.Event]) -> None:
        """Wait until all have come about; raises ChildFailed when a child ends before, or READY_TIMEOUT_S are over."""

        async def come() -> None:
            for event in events:
                await event.wait()

        coming = asyncio.create_task(come())
        try:
            done, _ = await asyncio.wait(
                [coming, *self._keepers], return_when=asyncio.FIRST_COMPLETED, timeout=READY_TIMEOUT_S
            )
        finally:
            coming.cancel()
        for task in done:
            task.result()
        if not done:
            late = ", ".join(child.name for child in self._children if not child.ready.is_set())
            raise ChildFailed(f"{late} not ready after {READY_TIMEOUT_S} s; see its log", 1)

    async def _keep(self, child: _Child) -> None:
        """Keep one place filled until the program stops."""
        failures = 0
        while not self._stopping:
            began = time.monotonic()
            code = await self._live(child)
            if self._stopping:
                return
            if not child.ready.is_set():
                raise ChildFailed(f"{child.name} ended with {_how(code)} before it was ready; see above", max(code, 1))
            child.restarts += 1
            failures = 1 if time.monotonic() - began >= STEADY_S else failures + 1
            delay_s = 0.0 if failures == 1 else min(BACKOFF_FIRST_S * 2 ** (failures - 2), BACKOFF_MAX_S)
            log.warning(
                "child ended and is replaced", extra=logs.fields(child=child.name, by=_how(code), delay_s=delay_s)
            )
            await asyncio.sleep(delay_s)

    async def _live(self, child: _Child) -> int:
        """Start a process in this place and wait for its end."""
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(child.kind, child.index, writer),
                stdin=asyncio.subprocess.PIPE,
                stdout=sys.stderr.fileno(),  # standard output belongs to the command, which may print one JSON line
                pass_fds=(writer, *self._inherited()),
                env={name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")},
                start_new_session=True,  # a Ctrl-C reaches only us, and we stop the children in order
            )
        finally:
            os.close(writer)
        child.process, child.pid = process, process.pid
        loop.add_reader(reader, _told, reader, child)
        try:
            if process.stdin is not None:
                process.stdin.write(msgspec.json.encode(settings_module.environment(self.settings)))
                process.stdin.close()
                with contextlib.suppress(OSError):  # it ended already, and its exit code says more
                    await process.stdin.wait_closed()
            child.begun.set()
            return await process.wait()
        finally:
            loop.remove_reader(reader)
            os.close(reader)
            child.process, child.pid = None, 0

    async def _end(self, child: _Child) -> None:
        process = child.process
        if process is None:
            return
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self.settings.drain_s)
        except TimeoutError:
            log.warning("child did not stop in time and is killed", extra=logs.fields(child=child.name))
            _signal(process, signal.SIGKILL)
            await process.wait()

    def _inherited(self) -> tuple[int, ...]:
        texts = (*self.settings.authz_listen, self.settings.local_listen, self.settings.control_listen)
        return tuple(int(text.removeprefix("fd:")) for text in texts if text.startswith("fd:"))

    def _release(self) -> None:
        """Give every address back; nobody serves it any more."""
        for claim in self._claims:
            if claim.family == socket.AF_UNIX:
                Path(claim.getsockname()).unlink(missing_ok=True)
            claim.close()
        self._claims.clear()
        for child in self._children:
            child.socket.unlink(missing_ok=True)


def _told(reader: int, child: _Child) -> None:
    """Take what a child wrote on its ready pipe; at its end the pipe is not watched any more."""
    try:
        data = os.read(reader, 64)
    except BlockingIOError:
        return
    if data.startswith(READY):
        child.ready.set()
    asyncio.get_running_loop().remove_reader(reader)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
