"""Processes below a running `sidecar dev`, found by /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from tests.servers.sidecar_dev import SidecarDev


def family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def everybody(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(below for child in family(pid)[1:] for below in everybody(child))]


def alive(pid: int) -> bool:
    """Whether a process still runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def accepted(port: int, pids: Iterable[int]) -> dict[int, int]:
    """Which of these processes has the connections to a port of loopback, by the port that each comes from."""
    sources: dict[str, int] = {}  # by inode
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
        if int(local[-4:], 16) == port and inode != "0":
            sources[f"socket:[{inode}]"] = int(remote[-4:], 16)
    found = {}
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                source = sources.get(str(descriptor.readlink()))
                if source:
                    found[source] = pid
    return found


def backoffice_of(dev: SidecarDev) -> int:
    """The process of the flusher and the control API; 0 while there is none."""
    for pid in family(dev.pid)[1:]:
        try:
            if b"_backoffice" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return 0
