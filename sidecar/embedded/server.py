"""One embedded server: a state directory, a lock on it, a port and a process.

Guarantees: at most one server runs on a state directory, whoever starts it: the server itself and every process it
            forks inherit the lock, so the lock is free exactly when all of them are gone.
            `start` after `stop`, after a kill of the server and after a kill of its parent goes on with the same
            data and password, and within one object with the same port. `stop` ends in bounded time, with SIGKILL if
            it must, and returns when no process of the server is left.
Gives up:   `start` must be called in a thread that lives as long as the server shall (see `child`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from sidecar.embedded.port import free_port, is_free
from sidecar.errors import EmbeddedServerFailed

START_S = 60.0
LOCK_S = 10.0
KILL_S = 5.0
POLL_S = 0.01
PORT_TRIES = 5
LOG_TAIL_BYTES = 2_000
LOG_BYTES_MAX = 10_000_000


class EmbeddedServer(ABC):
    """What Redis and Postgres have in common; a subclass says how to start one and how to see that it answers."""

    name: ClassVar[str]
    stop_steps: ClassVar[tuple[tuple[signal.Signals, float], ...]]

    def __init__(self, directory: Path, *, port: int = 0, durable: bool = True) -> None:
        self.directory = directory.absolute()
        self.port = port
        self.durable = durable
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._password_file = self.directory / "password"
        self._log_start = 0

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedServerFailed(f"{self.name} has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def password(self) -> str:
        """Made at the first start and kept beside the data: others on this machine reach the port, but not in."""
        return self._password_file.read_text(encoding="ascii")

    async def start(self) -> None:
        """Start the server and return once it answers; does nothing when it runs."""
        if self.running:
            return
        self._make_directory()
        lock = await self._locked()
        try:
            if not self._password_file.exists():
                write_private(self._password_file, secrets.token_hex(16))
            await self._prepare(lock)
            for _ in range(PORT_TRIES):
                if await self._started(lock):
                    return
        finally:
            os.close(lock)
        raise EmbeddedServerFailed(f"{self.name} found no free port; see {self.log}")

    async def stop(self) -> None:
        """End the server, kindly first; does nothing when it is down."""
        if self._process is None:
            return
        for number, patience_s in self.stop_steps:
            if self.running:
                self._process.send_signal(number)
                self._process.send_signal(signal.SIGCONT)
                await _until(lambda: not self.running, patience_s)
        self._process.wait(KILL_S)
        os.close(await self._locked())

    @abstractmethod
    async def _prepare(self, lock: int) -> None:
        """Bring the state directory into a form that the server starts on."""

    @abstractmethod
    def _spawn(self, lock: int, output: int) -> subprocess.Popen[bytes]:
        """Start the process; it inherits the lock."""

    @abstractmethod
    async def _answers(self) -> bool:
        """Whether the server is ready for everybody."""

    @contextmanager
    def _log_file(self) -> Iterator[int]:
        """Yield the log for a child to write to, begun anew when it has become long."""
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.fstat(file).st_size > LOG_BYTES_MAX:
                os.ftruncate(file, 0)
            self._log_start = os.fstat(file).st_size
            yield file
        finally:
            os.close(file)

    def _log_tail(self) -> str:
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            raise EmbeddedServerFailed(f"{self.name} cannot use {self.directory}: {error.strerror}") from error

    async def _locked(self) -> int:
        """The lock of the state directory, waiting for processes of a server that is on its way out."""
        file = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not await _until(lambda: _try_lock(file), LOCK_S):
            os.close(file)
            raise EmbeddedServerFailed(f"{self.directory} is in use by another {self.name}; stop that one first")
        return file

    async def _started(self, lock: int) -> bool:
        """Start the process on its port; False if another process took the port first."""
        chosen_here = self.port == 0
        self.port = self.port or free_port()
        if not is_free(self.port):
            raise EmbeddedServerFailed(f"{self.name} cannot listen on 127.0.0.1:{self.port}: the port is taken")
        with self._log_file() as output:
            self._process = self._spawn(lock, output)
        try:
            if await self._ready():
                return True
        except BaseException:
            self._kill()
            raise
        self._kill()
        tail = self._log_tail()
        if chosen_here and "in use" in tail:
            self.port = 0
            return False
        raise EmbeddedServerFailed(f"{self.name} did not start on {self.directory}:\n{tail}")

    async def _ready(self) -> bool:
        deadline = time.monotonic() + START_S
        while self.running and time.monotonic() < deadline:
            if await self._answers():
                return True
            await asyncio.sleep(POLL_S)
        return False

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(KILL_S)


async def _until(condition: Callable[[], bool], patience_s: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_private(path: Path, text: str) -> None:
    """Write a file for our eyes only, whole or not at all."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.rename(path)
