"""The state directory: what lies where, who owns it, and how commands find a running ``sidecar dev``.

Guarantees: one program at a time uses a directory; the lock goes with the process, however it ends.
Gives up:   directories on file systems without flock.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from sidecar.errors import Conflict, NotFound, SettingsInvalid

SOCKET_PATH_BYTES_MAX = 107  # what the kernel's sockaddr_un holds


class DevServers(Struct, frozen=True, kw_only=True):
    """Where the parts of a running ``sidecar dev`` are; also its --json line. ``stripe`` may be empty."""

    authz: str
    local: str
    ops: str
    control: str
    redis: str
    postgres: str
    stripe: str
    admin_token: str
    pids: dict[str, list[int] | int]


class State:
    """Paths below one state directory, and its lock."""

    __slots__ = ("_lock", "path")

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    def ops_socket(self, process: str) -> Path:
        """Where a child answers the supervisor: ``authz-0``, ``backoffice``."""
        return self.path / ("ops-" + process.removeprefix("authz-") + ".sock")

    @property
    def clock_file(self) -> Path:
        return self.path / "clock"

    @property
    def dev_file(self) -> Path:
        return self.path / "dev.json"

    def claim(self) -> None:
        """Make the directory and lock it for this process; raises Conflict with the pid that has it."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise SettingsInvalid(f"cannot use {self.path}: {error.strerror}; mend its rights or its path") from error
        if len(os.fsencode(self.ops_socket("backoffice"))) > SOCKET_PATH_BYTES_MAX:
            os.close(descriptor)
            raise SettingsInvalid(f"{self.path} is too long a path for sockets inside it; use a shorter one")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise Conflict(
                f"{self.path} is in use by process {holder}; stop that one or use another state directory"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def release(self) -> None:
        """Let the directory go; the lock file stays, because removing it would race with a new owner."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def in_use(self) -> bool:
        """Whether a living process has the directory."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def write_dev(self, servers: DevServers) -> None:
        """Tell the other commands where everything is; the file holds a token, so only its owner reads it."""
        fresh = self.dev_file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(servers))
        fresh.replace(self.dev_file)

    def read_dev(self) -> DevServers:
        """Find the running ``sidecar dev``; raises NotFound when there is none."""
        if not self.in_use():
            raise NotFound(f"no `sidecar dev` is running in {self.path}; start one or name its --state")
        try:
            return msgspec.json.decode(self.dev_file.read_bytes(), type=DevServers)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotFound(f"the program in {self.path} is no `sidecar dev`, or not ready yet; try again") from error
