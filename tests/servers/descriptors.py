"""What a process has open, and taking from it the right to open more."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

# The limit is one on numbers, and a number that becomes free may be used again; below this one none ever is.
NONE = 3


def descriptors(pid: int) -> set[tuple[int, int]]:
    """The files and connections that a process has open, by device and inode."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            opened = entry.stat()
            found.add((opened.st_dev, opened.st_ino))
    return found


@contextlib.contextmanager
def no_descriptors(pid: int) -> Iterator[None]:
    """Let a process open no further file or connection (EMFILE); what it has stays open."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (NONE, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
