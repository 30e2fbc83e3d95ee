"""A child process that dies with its parent and, where root must not be, runs as somebody else.

Guarantees: when the thread that started it ends, even by `kill -9`, the kernel sends the child its death signal.
            A child started as another user keeps one capability at most, and only if asked: to pass through
            directories closed to that user (a state directory or a `.venv` below /root).
Gives up:   outside Linux there is no death signal; there a killed parent leaves its children behind.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class User(Struct, frozen=True):
    """A system user that a server runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, *names: str) -> User:
        """The first of these users that exists."""
        for name in names:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)
        raise LookupError(f"none of these system users exists: {', '.join(names)}")

    @classmethod
    def owning(cls, path: Path) -> User:
        status = path.stat()
        try:
            name = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            name = str(status.st_uid)
        return cls(name, status.st_uid, status.st_gid)

    def barrier(self, path: Path) -> Path | None:
        """The first directory above the path that this user may not pass through."""
        for directory in reversed(path.resolve().parents):
            status = directory.stat()
            needed = stat.S_IXOTH
            if status.st_uid == self.uid:
                needed = stat.S_IXUSR
            elif status.st_gid == self.gid:
                needed = stat.S_IXGRP
            if not status.st_mode & needed:
                return directory
        return None


def can_pass_barriers() -> bool:
    """Whether this process may let a child of another user pass through closed directories."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> CAP_DAC_OVERRIDE & 1)


def spawn(
    command: list[str],
    *,
    directory: Path,
    output: int,
    death_signal: signal.Signals,
    environment: dict[str, str] | None = None,
    keep_fds: tuple[int, ...] = (),
    user: User | None = None,
    passing_barriers: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that a Ctrl-C reaches the parent alone, which stops it in order."""
    return subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        pass_fds=keep_fds,
        start_new_session=True,
        preexec_fn=_before_exec(death_signal, user, passing_barriers=passing_barriers),  # noqa: PLW1509 - see there
    )


def _before_exec(death_signal: signal.Signals, user: User | None, *, passing_barriers: bool) -> Callable[[], None]:
    """What the child does between fork and exec.

    It runs in a copy of this process that has one thread and may meet any lock held, so it only makes system calls.
    """
    parent = os.getpid()

    def before_exec() -> None:
        if user is not None:
            if passing_barriers:
                _libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
            os.setgroups([])
            os.setgid(user.gid)
            os.setuid(user.uid)
            if passing_barriers:
                _keep_capability(CAP_DAC_OVERRIDE)
        if sys.platform == "linux":
            # Only now: the kernel forgets the death signal when a process changes its user.
            _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return before_exec


def _keep_capability(capability: int) -> None:
    """Drop every capability but this one, and keep it across exec."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    bit = 1 << capability
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    kept = _libc.capset(header, effective_permitted_inheritable) == 0
    if not kept or _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) != 0:
        raise PermissionError(ctypes.get_errno(), "capability refused")
